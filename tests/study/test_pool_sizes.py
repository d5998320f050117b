"""Contexts of the first so many ingredients, and the tables over them."""

import json

import pytest
import torch
from rich.console import Console
from tiny_contexts import made_context

from lightning_merge import Average, PermutationSpec, Recipe, Study, WeightMatching
from lightning_merge.aggregate import model_stock, task_arithmetic, task_vector, ties
from lightning_merge.cli import main
from lightning_merge.errors import ConfigError
from lightning_merge.measure.outcome import run_recipe
from lightning_merge.recipe.aligning import align
from lightning_merge.report.summary import AVERAGE, pool_table, summarise, terminal_table
from lightning_merge.study.folder import unite
from lightning_merge.study.plan import plan


def test_a_smaller_context_is_of_the_first_ones():
    context = made_context(4)
    two = context.first(2)
    assert two.states == context.states[:2]
    assert two.names == ["network 0", "network 1"]
    assert two.digests == context.digests[:2]
    assert len(context.states) == 4
    assert context.first(4) is context
    module = Recipe("mean", Average())(two).module
    wanted = (context.states[0]["net.0.weight"] + context.states[1]["net.0.weight"]) / 2
    torch.testing.assert_close(module.state_dict()["net.0.weight"], wanted)


@pytest.mark.parametrize("sizes", [(2, 4), (4, 3, 2)])
def test_an_ingredient_is_aligned_once_for_all_numbers(sizes, monkeypatch):
    calls = []
    real = WeightMatching.align

    def counting(self, *args, **kwargs):
        calls.append(args)
        return real(self, *args, **kwargs)

    traced = []
    from_model = PermutationSpec.from_model

    def tracing(*args, **kwargs):
        traced.append(args)
        return from_model(*args, **kwargs)

    monkeypatch.setattr(PermutationSpec, "from_model", tracing)
    context = made_context(4)
    alone = align(WeightMatching(), made_context(4)).states
    traced.clear()
    monkeypatch.setattr(WeightMatching, "align", counting)
    seconds = {}
    for size in sizes:
        found = align(WeightMatching(), context.first(size))
        seconds[size] = found.seconds
        assert len(found.states) == size
        for state, wanted in zip(found.states, alone[:size], strict=True):
            assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert len(calls) == 3
    assert len(traced) == 1
    # More networks take longer, whichever number came first.
    assert sorted(seconds.values()) == [seconds[size] for size in sorted(sizes)]


def test_rows_say_of_how_many_ingredients_they_are():
    context = made_context(3)
    outcomes = [run_recipe(Recipe("mean", Average()), context.first(n)) for n in (2, 3)]
    assert [one.measurement.pool_size for one in outcomes] == [2, 3]


def row(method, kind, accuracy, size=None, seed=0):
    return {
        "method": method,
        "kind": kind,
        "accuracy": accuracy,
        "seconds": 1.0,
        "parameters": 10,
        "seed": seed,
        "pool_size": size,
    }


ROWS = [
    *(row(f"I{i}", "ingredient", 0.1 * i) for i in range(1, 5)),
    row("mean", "merge", 0.5, 2),
    row("all", "ensemble", 0.7, 2),
    row("mean", "merge", 0.4, 4),
    row("all", "ensemble", 0.8, 4),
]


def test_each_size_has_the_average_of_its_own_ingredients():
    summary = summarise(ROWS)
    found = [(one["method"], one["pool_size"], one["accuracy"]) for one in summary]
    assert [(name, size) for name, size, _ in found[4:]] == [
        (name, size) for size in (2, 4) for name in (AVERAGE, "mean", "all")
    ]
    averages = {size: accuracy for name, size, accuracy in found if name == AVERAGE}
    assert averages == {2: pytest.approx(0.15), 4: pytest.approx(0.25)}


def test_the_table_by_size():
    lines = pool_table(summarise(ROWS)).splitlines()
    assert lines[0] == "| accuracy | 2 models | 4 models |"
    assert lines[2:] == [
        f"| {AVERAGE} | 0.1500 | 0.2500 |",
        "| mean | 0.5000 | 0.4000 |",
        "| all | 0.7000 | 0.8000 |",
    ]
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal_table(summarise(ROWS), "Title"))
    assert "models" in console.export_text()


def study(**changes):
    arguments = {
        "data": {"class_path": "Digits", "init_args": {"split_seed": 0}},
        "model": {"class_path": "Net"},
        "recipes": [{"name": "mean", "aggregate": "Average"}],
        "ingredients": [{}, {}, {}],
    }
    return Study(**{**arguments, **changes})


def test_a_merge_needs_the_first_ingredients_only():
    works = plan(study(pool_sizes=[2, 3], sweeps={"magnitudes": [1, 2]}))
    assert [work.kind for work in works] == ["ingredient"] * 3 + ["merge"] * 2 + ["sweep"]
    trained, merged = (tuple(work.key for work in part) for part in (works[:3], works[3:5]))
    # Weight scaling reads the merges too.
    assert [work.needs for work in works[3:]] == [trained[:2], trained, trained + merged]
    assert works[5].settings["merges"] == [["mean", 2, merged[0]], ["mean", 3, merged[1]]]
    # All of them, without a word, is the same work as all of them by their number.
    assert plan(study())[3].key == merged[1]
    assert plan(study(pool_sizes=[2, 3], sweeps={"magnitudes": [1]}))[5].key != works[5].key


def test_ingredients_that_start_together_need_their_start():
    works = plan(study(start={"max_epochs": 2}, seeds=[0, 1]))
    assert [work.kind for work in works] == (["start"] + ["ingredient"] * 3 + ["merge"]) * 2
    for start, *rest in (works[:5], works[5:]):
        assert start.settings["trainer"] == {"max_epochs": 2}
        assert all(work.needs == (start.key,) for work in rest[:3])
        # Task vectors go from the start.
        assert rest[3].needs == (start.key, *(work.key for work in rest[:3]))
    alone = {work.key for work in plan(study(seeds=[0, 1]))}
    assert not alone & {work.key for work in works}


@pytest.mark.parametrize("sizes", [[1], [2, 4], [2, 2], [0]])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(ConfigError, match="numbers from 2 to 3"):
        plan(study(pool_sizes=sizes))


RECIPES = """[
 {name: Soup, aggregate: Average}, {name: Greedy, aggregate: GreedySoup},
 {name: Logits, aggregate: LogitsEnsemble}, {name: Features, aggregate: FeaturesEnsemble},
 {name: First, aggregate: {class_path: FeaturesEnsemble, init_args: {head: first}}},
 {name: Greedy logits, aggregate: GreedyLogitsEnsemble},
 {name: Greedy features, aggregate: GreedyFeaturesEnsemble}]"""
METHODS = ["Soup", "Greedy", "Logits", "Features", "First", "Greedy logits", "Greedy features"]
STUDY = [
    "study",
    "--model",
    "{class_path: ImageClassifier, init_args: {model: linear_classifier, in_chans: 1, "
    "model_kwargs: {img_size: 8}}}",
    "--data",
    "{class_path: DigitsDataModule, init_args: {eval_batch_size: 64}}",
    *("--ingredients", "[{}, {}, {}]", "--training", "{max_epochs: 1}", "--recipes", RECIPES),
]


def test_one_study_gives_the_table_over_pool_sizes_and_magnitudes(tmp_path, capsys):
    words = [*STUDY, "--start", "{max_epochs: 1}", "--pool_sizes", "[2, 3]"]
    main([*words, "--magnitudes", "[0.5, 1]", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    made = [one for one in results["measurements"] if one["kind"] != "ingredient"]
    assert [(one["method"], one["pool_size"]) for one in made] == [
        (name, size) for size in (2, 3) for name in METHODS
    ]
    accuracy = {(one["method"], one["pool_size"]): one["accuracy"] for one in made}
    for size in (2, 3):
        # Where all is linear averages of weights and of outputs are equal (Eq. 3 and 5).
        assert accuracy["Soup", size] == accuracy["Logits", size] == accuracy["Features", size]
    assert results["network"] == "linear_classifier"
    curves = {(one["name"], one["pool_size"]): one for one in results["magnitudes"]}
    assert len(curves) == 2 * (1 + len(METHODS))
    for name, size in accuracy:
        assert curves[name, size]["accuracy"][1] == pytest.approx(accuracy[name, size])
    written = {path.name for path in tmp_path.iterdir()}
    names = ("methods", "pools", "gap", "magnitude", "magnitude-gap", "magnitude-scatter")
    assert {f"{name}.{kind}" for name in names for kind in ("png", "svg")} <= written
    for size in (2, 3):
        folder = tmp_path / f"merges/seed0/{size}-networks"
        assert {path.name for path in folder.iterdir()} == {"soup.ckpt", "greedy.ckpt"}
    report = (tmp_path / "report.md").read_text()
    assert "| accuracy | 2 models | 3 models |" in report
    # All start as one network: each has learned on from it.
    start, first, second = (
        torch.load(tmp_path / f"runs/{work.key}/weights.ckpt", weights_only=True)["state_dict"]
        for work in plan(Study.of_config(results["config"]))[:3]
    )
    name = "network.head.weight"
    assert not torch.equal(first[name], second[name])
    assert float((first[name] - start[name]).norm()) < float(start[name].norm()) / 2

    capsys.readouterr()
    for figure in ("magnitude", "bars"):
        main(["plot", figure, str(tmp_path / "results.json")])
    files = [line for line in capsys.readouterr().out.split() if line.endswith((".png", ".svg"))]
    assert len(files) == 2 * (3 + 1)


def test_more_sizes_and_factors_go_on_in_the_same_folder():
    before = {"pool_sizes": [3], "magnitudes": [1.0], "seeds": [0], "start": None}

    def both(before, now):
        recipes = {"recipes": []}
        return unite({**recipes, **before}, {**recipes, **now}, ("title", "magnitudes"))

    def goes(before, now):
        return both(before, now) is not None

    more = both(before, {**before, "pool_sizes": [2, 3], "magnitudes": []})
    assert sorted(more["pool_sizes"]) == [2, 3]
    assert more["magnitudes"] == []
    assert sorted(both(before, {**before, "pool_sizes": [2]})["pool_sizes"]) == [2, 3]
    assert not goes(before, {**before, "start": {"max_epochs": 1}})
    # A study from before there was a start.
    assert goes({"seeds": [0]}, before)
    # What only shows something may change, what computes otherwise may not.
    before["trainer"] = {"logger": None, "precision": 32}
    now = {"logger": {"class_path": "CSVLogger"}, "precision": 32, "enable_progress_bar": False}
    assert goes(before, {**before, "trainer": now})
    assert not goes(before, {**before, "trainer": {**now, "precision": 16}})


VECTORS = """[
 {name: Arithmetic, aggregate: {class_path: TaskArithmetic, init_args: {scale: 0.4}}},
 {name: Named, aggregate: {class_path: TIES, init_args: {pretrained: start, scale: 1.0}}},
 {name: Stock, aggregate: ModelStock}]"""


def test_recipes_of_a_study_go_from_its_start(tmp_path, capsys):
    words = [*STUDY[:-4], "--training", "{max_epochs: 3}", "--recipes", VECTORS]
    words += ["--seeds", "[0, 1]", "--start", "{max_epochs: 1}"]
    main([*words, "--output", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out/results.json").read_text())
    works = plan(Study.of_config(results["config"]))
    for seed in (0, 1):
        own = [work for work in works if work.seed == seed and work.kind != "merge"]
        start, *tuned = (
            torch.load(tmp_path / f"out/runs/{work.key}/weights.ckpt")["state_dict"] for work in own
        )
        assert own[0].kind == "start"
        vectors = [task_vector(state, start) for state in tuned]
        for name, expected in (
            ("arithmetic", task_arithmetic(start, vectors, 0.4)),
            ("named", ties(start, vectors, 1.0)),
            ("stock", model_stock(start, tuned)),
        ):
            found = torch.load(tmp_path / f"out/merges/seed{seed}/{name}.ckpt")["state_dict"]
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value)
    with pytest.raises(SystemExit):
        main([*words[:-2], "--output", str(tmp_path / "other")])
    assert "give the study a `start`" in capsys.readouterr().err


def test_a_comparison_over_pool_sizes(tmp_path, capsys):
    from made_checkpoints import write_ingredients

    network = {"model": "linear_classifier", "model_kwargs": {"img_size": 8}}
    words = ["compare", "--checkpoints", write_ingredients(tmp_path, 3, **network)]
    words += ["--data", "{class_path: DigitsDataModule, init_args: {eval_batch_size: 64}}"]
    words += [
        "--recipes",
        "[{name: Soup, aggregate: Average}, {name: L, aggregate: LogitsEnsemble}]",
    ]
    words += ["--pool_sizes", "[2, 3]", "--output", str(tmp_path / "out")]
    main([*words, "--magnitudes", "[0.5, 1, 2]"])
    results = json.loads((tmp_path / "out/results.json").read_text())
    found = [(one["method"], one["pool_size"]) for one in results["measurements"][3:]]
    assert found == [("Soup", 2), ("L", 2), ("Soup", 3), ("L", 3)]
    assert (tmp_path / "out/merges/3-networks/soup.ckpt").is_file()
    assert [len(one["accuracy"]) for one in results["magnitudes"]] == [3] * 6
    capsys.readouterr()
    for words in (["--magnitudes", "[0]"], ["--pool_sizes", "[4]"]):
        with pytest.raises(SystemExit):
            main(["compare", *words_of(results), *words, "--output", str(tmp_path / "other")])
        assert not (tmp_path / "other").exists()


def words_of(results):
    config = results["config"]
    return [
        *("--checkpoints", json.dumps(config["checkpoints"])),
        *("--data", json.dumps({"class_path": "DigitsDataModule"})),
        *("--recipes", "[{name: Soup, aggregate: Average}]"),
    ]
