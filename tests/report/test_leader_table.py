"""The leader table over studies, against ranks counted by hand."""

import csv
import hashlib
import json

import numpy as np
import pytest
from scipy.stats import rankdata

from lightning_merge.cli import main
from lightning_merge.errors import ConfigError
from lightning_merge.report.leader_table import leader_table

RECIPES = [
    {"name": "Mean", "aggregate": "Average"},
    {"name": "NP", "aggregate": {"class_path": "x.NPMerge"}, "align": "ActivationMatching"},
    {"name": "FT", "aggregate": {"class_path": "x.FineTune"}, "recalibrate": "batchnorm"},
    {"name": "All", "aggregate": "LogitsEnsemble"},
]
NAMES = {
    "Mean": "Average",
    "NP": "NPMerge after ActivationMatching",
    "FT": "FineTune, batchnorm",
}


def network(name, seed, accuracy, held_out):
    return {
        "method": name,
        "kind": "ingredient",
        "pool_size": None,
        "accuracy": accuracy,
        "held_out": held_out,
        "seed": seed,
        "train_examples": None,
    }


def write(folder, scores, size=2, networks=(), **config):
    """A study's results: for each method its accuracy with each seed."""
    whole = {
        "title": folder.name,
        "recipes": RECIPES,
        "model": {"class_path": "x.M", "init_args": {"num_classes": 10}},
        "data": {"class_path": "x.D", "init_args": {"split": "all"}},
        "ingredients": [{}, {}],
        "start": None,
        **config,
    }
    rows = [
        {
            "method": method,
            "kind": "ensemble" if method == "All" else "merge",
            "pool_size": size,
            "accuracy": value,
            "seed": seed,
            "train_examples": 5000,
        }
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ]
    rows += networks
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"config": whole, "measurements": rows}))
    return folder


@pytest.fixture
def studies(tmp_path):
    little = {"class_path": "x.D", "init_args": {"split": "80-20", "examples_per_class": 5}}
    scores = [
        {"Mean": [0.1, 0.3], "NP": [0.5, 0.5], "FT": [0.6, 0.2], "All": [0.9, 0.9]},
        {"Mean": [0.4], "NP": [0.8], "FT": [0.7]},
        {"Mean": [0.5], "FT": [0.5]},
    ]
    folders = [
        write(tmp_path / "a", scores[0]),
        write(tmp_path / "b", scores[1], size=4, start={"max_epochs": 1}, data=little),
        write(tmp_path / "c", scores[2], ingredients=[{"classes": [0]}, {"classes": [1]}]),
    ]
    return folders, scores


def ranks(scores):
    merges = {name: sum(of) / len(of) for name, of in scores.items() if name != "All"}
    found = rankdata([-value for value in merges.values()])
    return {NAMES[name]: rank for name, rank in zip(merges, found, strict=True)}


def test_mean_ranks_over_all_studies_are_those_counted_by_hand(studies):
    folders, scores = studies
    table = leader_table(folders)
    by_hand = [ranks(one) for one in scores]
    overall = {row.recipe: row for row in table.rows if row.situation == "all"}
    assert set(overall) == set(NAMES.values())
    for recipe, row in overall.items():
        own = [one[recipe] for one in by_hand if recipe in one]
        assert row.rank == pytest.approx(sum(own) / len(own))
        assert row.fields == len(own) == len(row.studies)
    shares = [row.beaten for row in table.rows if row.situation == "all"]
    assert shares == sorted(shares, reverse=True)
    assert overall[NAMES["NP"]].beaten == pytest.approx(1.0)
    assert overall[NAMES["NP"]].first == 2


def test_a_merge_is_held_against_its_networks_and_the_best_of_them(tmp_path):
    found = [
        *(network("One", 0, 0.5, 0.9), network("Two", 0, 0.7, 0.8), network("Three", 0, 0.0, 1.0)),
        *(network("One", 1, 0.6, 0.1), network("Two", 1, 0.4, 0.2), network("Three", 1, 0.0, 0.0)),
    ]
    scores = {"Mean": [0.6, 0.4], "NP": [0.9, 0.7]}
    table = leader_table([write(tmp_path / "a", scores, networks=found)])
    row = next(r for r in table.rows if r.recipe == NAMES["NP"] and r.situation == "all")
    assert row.over_networks == pytest.approx(0.8 - (0.5 + 0.7 + 0.6 + 0.4) / 4)
    assert row.over_best == pytest.approx(0.8 - (0.5 + 0.4) / 2)  # each seed's best on held-out
    assert "| +25.0 | +35.0 |" in table.markdown

    drawn = table.figure().axes[0]
    assert [tick.get_text() for tick in drawn.get_yticklabels()] == [NAMES["NP"], NAMES["Mean"]]
    # The situations of one factor hold the same study.
    assert {text.get_text() for text in drawn.texts} == {"+25", "-5.0"}

    for one in found:
        one["held_out"] = None
    without = leader_table([write(tmp_path / "b", scores, networks=found)])
    assert {r.over_best for r in without.rows} == {None}
    assert next(iter(without.rows)).over_networks == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("situation", "which"),
    [
        ("initialisation: same", [1]),
        ("initialisation: different", [0, 2]),
        ("data: little", [1]),
        ("data: much", [0, 2]),
        ("networks: 2", [0, 2]),
        ("networks: 4", [1]),
        ("classes: the same", [0]),
        ("classes: shared unevenly", [1]),
        ("classes: disjoint", [2]),
        ("initialisation: same; data: little; networks: 4; classes: shared unevenly", [1]),
    ],
)
def test_a_situation_has_the_studies_that_are_in_it(studies, situation, which):
    folders, scores = studies
    rows = {r.recipe: r for r in leader_table(folders).rows if r.situation == situation}
    expected = {}
    for one in (ranks(scores[index]) for index in which):
        for recipe, rank in one.items():
            expected.setdefault(recipe, []).append(rank)
    assert {recipe: row.rank for recipe, row in rows.items()} == pytest.approx(
        {recipe: sum(found) / len(found) for recipe, found in expected.items()}
    )


def test_ids_stay_when_studies_are_added(studies):
    folders, _ = studies
    few, all_of_them = leader_table(folders[:1]), leader_table([*folders, folders[0]])
    ids = {(row.situation, row.recipe): row.id for row in all_of_them.rows}
    assert len(set(ids.values())) == len(ids)
    for row in few.rows:
        assert ids[row.situation, row.recipe] == row.id
    assert few.studies.items() <= all_of_them.studies.items()


def test_no_study_is_left_out_for_the_digits_of_another(tmp_path):
    folders, numbers = [], {}
    plain = json.loads(
        (write(tmp_path / "a", {"Mean": [0.1], "NP": [0.5]}) / "results.json").read_text()
    )
    for number in range(10_000):
        plain["config"]["training"] = {"max_epochs": number}
        text = f"{plain['config']}{plain['measurements']}"
        digits = hashlib.sha256(text.encode()).hexdigest()[:4]
        if digits in numbers:
            break
        numbers[digits] = number
    for epochs in (numbers[digits], number, number):
        plain["config"]["training"] = {"max_epochs": epochs}
        folders.append(tmp_path / f"study {len(folders)}")
        folders[-1].mkdir()
        (folders[-1] / "results.json").write_text(json.dumps(plain))
    found = leader_table(folders)
    assert [name[:5] for name in found.studies] == [f"S{digits}"] * 2
    assert {row.fields for row in found.rows if row.situation == "all"} == {2}


def test_the_command_writes_a_table_that_cites_rows_and_studies(studies, tmp_path, capsys):
    folders, _ = studies
    words = ["leaders", *map(str, folders), "--output", str(tmp_path / "out")]
    main(words)
    table = leader_table(folders)
    text = (tmp_path / "out" / "leaders.md").read_text()
    for row in table.rows:
        assert f"| {row.id} | {row.recipe} |" in text
    for name, what in table.studies.items():
        assert f"* {name}: {what}" in text
    with (tmp_path / "out" / "leaders.csv").open() as file:
        stored = list(csv.DictReader(file))
    assert [line["id"] for line in stored] == [row.id for row in table.rows]
    assert table.rows[0].id in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2


def test_what_is_no_study_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["leaders", str(tmp_path), "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "holds no results of a study" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("confusion", "data"),
    [(["a"] * 100, "little"), (["a"] * 5, "much"), (None, "unknown")],
)
def test_the_classes_of_a_model_that_does_not_say_them_are_those_of_its_answers(
    tmp_path, confusion, data
):
    folder = write(tmp_path / "a", {"Mean": [0.1], "NP": [0.5]}, model={"class_path": "x.Own"})
    path = folder / "results.json"
    classes = {"confusion": None if confusion is None else {"classes": confusion}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **classes}))
    situations = {row.situation for row in leader_table([folder]).rows}
    assert {one for one in situations if one.startswith("data: ")} == {f"data: {data}"}


def test_as_many_right_answers_over_all_seeds_are_a_tie(tmp_path):
    # Each accuracy is rounded to float32, so equal sums have means that differ.
    right = {"Mean": [330, 340, 335], "NP": [338, 331, 336], "FT": [334, 335, 335]}
    scores = {name: [float(np.float32(hits / 359)) for hits in of] for name, of in right.items()}
    assert len({sum(of) for of in scores.values()}) == 3
    table = leader_table([write(tmp_path / "s", scores)])
    overall = {row.recipe: row for row in table.rows if row.situation == "all"}
    places = {name: (overall[NAMES[name]].rank, overall[NAMES[name]].first) for name in right}
    assert places == {"Mean": (1.5, 1), "NP": (1.5, 1), "FT": (3, 0)}


def test_merges_that_two_folders_share_are_not_counted_twice(tmp_path):
    part = write(tmp_path / "part", {"Mean": [0.1], "NP": [0.5]})
    whole = write(tmp_path / "whole", {"Mean": [0.1, 0.3], "NP": [0.5, 0.5]})
    other = {"class_path": "x.D", "init_args": {"split": "80-20"}}
    alike = write(tmp_path / "alike", {"Mean": [0.1], "NP": [0.5]}, data=other)
    with pytest.raises(
        ConfigError, match=r"part and .*whole hold the same merge \('Mean', seed 0\)"
    ):
        leader_table([part, whole])
    assert leader_table([part, alike, part]).rows[0].fields == 2


def _tasks(results):
    # As `tasks` writes it: its networks start from one and differ in classes.
    del results["config"]["ingredients"]
    results["config"]["tasks"] = []


@pytest.mark.parametrize(
    "damage",
    [
        _tasks,
        lambda results: results["measurements"][0].pop("kind"),
        lambda results: results["measurements"][0].pop("accuracy"),
        lambda results: results["measurements"].append(3),
        lambda results: results.update(measurements={"a": 1}),
        lambda results: results.update(confusion=[1]),
        lambda results: results["config"].update(recipes=["Mean"]),
    ],
)
def test_results_of_something_else_are_refused_in_a_line(damage, tmp_path):
    folder = write(tmp_path / "a", {"Mean": [0.1], "NP": [0.5]})
    results = json.loads((folder / "results.json").read_text())
    assert len(leader_table([folder]).rows) > 2
    damage(results)
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ConfigError, match=r"results\.json holds no results of a study: give"):
        leader_table([folder])


def test_a_title_of_several_lines_is_one_line_of_the_table(tmp_path):
    folder = write(tmp_path / "a", {"Mean": [0.1], "NP": [0.5]}, title="Small\n## all\n")
    (line,) = leader_table([folder]).studies.values()
    assert line == f"Small ## all, 1 seed ({folder})"
