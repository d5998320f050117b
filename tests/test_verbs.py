"""The verbs as functions, on what a notebook has; commands write the same."""

import ast
import csv
import json
import logging
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from strangers import quiet_trainer
from tiny_contexts import Learner, Points, learners, trained

import lightning_merge
from lightning_merge import (
    Average,
    Context,
    LogitsEnsemble,
    NPMerge,
    Recipe,
    WeightMatching,
    average,
    compare,
    merge,
    run_study,
)
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.cli import main
from lightning_merge.errors import CheckpointError, ConfigError, MergeError, OutputExistsError
from lightning_merge.recipe.aligning import align

MODEL = {"class_path": "tiny_contexts.Learner"}
DATA = {"class_path": "tiny_contexts.Points"}
LEARNED = {"class_path": "NPMerge", "init_args": {"max_epochs": 1}}
RECIPES = [
    {"name": "Mean", "aggregate": "Average"},
    {"name": "Weight <matching> & mean", "aggregate": "Average", "align": "WeightMatching"},
    {"name": "NP", "aggregate": LEARNED},
    {"name": "All", "aggregate": "LogitsEnsemble"},
]
OBJECTS = [
    Recipe("Mean", Average()),
    Recipe("Weight <matching> & mean", Average(), WeightMatching()),
    Recipe("NP", NPMerge(max_epochs=1)),
    Recipe("All", LogitsEnsemble()),
]


@pytest.fixture(scope="module")
def networks():
    return learners(3)


@pytest.fixture(scope="module")
def paths(networks, tmp_path_factory):
    """Checkpoints of the networks, as other projects write them: state dicts."""
    folder = tmp_path_factory.mktemp("networks")
    for number, network in enumerate(networks):
        torch.save(network.state_dict(), folder / f"{number}.pt")
    return [folder / f"{number}.pt" for number in range(3)]


@pytest.fixture(scope="module")
def compared(networks):
    """A comparison of objects."""
    return compare(networks, OBJECTS, Points(), barrier=3, title="A <title>", progress=False)


def states_of(networks):
    return [network.state_dict() for network in networks]


def evaluated(logits):
    """Loss and accuracy on the test points, in one go."""
    _, y = Points().test_dataloader().dataset.tensors
    loss = torch.nn.functional.cross_entropy(logits, y)
    return float(loss), float((logits.argmax(1) == y).float().mean())


def points():
    return Points().test_dataloader().dataset.tensors[0]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def without_times(rows):
    return [{**row, "seconds": ""} for row in rows]


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_networks_state_dicts_and_paths_merge_alike(networks, paths):
    states = states_of(networks)
    for given, model in ((networks, None), (states, Learner()), (paths, MODEL), (paths, None)):
        mixed = given if model else [networks[0], *given[1:]]
        for recipe in (OBJECTS[0], RECIPES[0]):
            result = merge(mixed, recipe, Points(), model=model, progress=False)
            merged = result.merged["Mean"]
            assert type(merged) is Learner
            assert not merged.training
            torch.testing.assert_close(dict(merged.state_dict()), average(states))
    (row,) = result.rows
    with torch.no_grad():
        loss, accuracy = evaluated(merged(points()))
    assert row.metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert row.accuracy == pytest.approx(accuracy)
    assert (row.kind, row.pool_size, row.test_examples) == ("merge", 3, 80)


def test_what_was_given_is_left_as_it_was(networks):
    before = [{name: value.clone() for name, value in s.items()} for s in states_of(networks)]
    data, model = Points(), Learner()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    merge(networks, Recipe("x", NPMerge(max_epochs=1)), data, model=model, progress=False)
    for network, state in zip(networks, before, strict=True):
        torch.testing.assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), first, rtol=0, atol=0)


def test_networks_in_evaluation_mode_learn_as_those_of_files():
    made = [Learner(norm=True) for _ in range(2)]
    for seed, network in enumerate(made):
        network.load_state_dict(trained(seed, norm=True).state_dict())
    recipe = Recipe("NP", NPMerge(max_epochs=1))
    found = [
        merge(given, recipe, Points(), model=model, progress=False).merged["NP"].state_dict()
        for given, model in (
            ([network.eval() for network in made], None),
            ([network.state_dict() for network in made], Learner(norm=True).eval()),
            ([network.state_dict() for network in made], {**MODEL, "init_args": {"norm": True}}),
        )
    ]
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)
    torch.testing.assert_close(found[1], found[2], rtol=0, atol=0)


def test_rows_are_what_was_measured(compared, networks):
    names = ["network 1", "network 2", "network 3", *(recipe.name for recipe in OBJECTS)]
    assert [row.method for row in compared.rows] == names
    kinds = [row.kind for row in compared.rows]
    assert kinds == ["ingredient"] * 3 + ["merge"] * 3 + ["ensemble"]
    with torch.no_grad():
        outputs = [network.eval()(points()) for network in networks]
        expected = [*map(evaluated, outputs), *[None] * 3, evaluated(torch.stack(outputs).mean(0))]
        for number, name in enumerate(names[3:6], start=3):
            expected[number] = evaluated(compared.merged[name](points()))
    for row, (loss, accuracy) in zip(compared.rows, expected, strict=True):
        assert row.metrics["loss"] == pytest.approx(loss, rel=1e-4)
        assert row.accuracy == pytest.approx(accuracy)


def test_merged_networks_are_under_their_names(compared, networks):
    assert list(compared.merged) == ["Mean", "Weight <matching> & mean", "NP"]
    states = states_of(networks)
    torch.testing.assert_close(dict(compared.merged["Mean"].state_dict()), average(states))
    context = Context(Learner(), states, list("abc"), Points(), quiet_trainer, progress=False)
    aligned = average(align(WeightMatching(), context).states)
    found = compared.merged["Weight <matching> & mean"].state_dict()
    torch.testing.assert_close(dict(found), aligned)
    # Each time another module: what one does to it changes no result.
    assert compared.merged["Mean"] is not compared.merged["Mean"]
    with pytest.raises(KeyError, match=r"no merge is called 'All': .*Mean.*NP"):
        compared.merged["All"]


def test_a_frame_has_the_rows(compared):
    pandas = pytest.importorskip("pandas")
    frame = compared.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["method"]) == [row.method for row in compared.rows]
    assert list(frame["loss"]) == [row.metrics["loss"] for row in compared.rows]


def test_without_pandas_a_frame_is_one_line(compared, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pip install pandas, or use \.rows") as caught:
        compared.frame()
    assert "\n" not in str(caught.value)


def test_the_table_is_that_of_the_terminal(compared):
    console = Console(width=120, file=None)
    with console.capture() as capture:
        console.print(compared.table())
    text = capture.get()
    header, *lines = compared.cells()
    assert header[:2] == ["method", "accuracy"]
    assert [line[0] for line in lines][3] == "Ingredients' average"
    for line in lines:
        assert line[0] in text
        assert line[1] in text
    accuracies = [row.accuracy for row in compared.rows]
    assert float(lines[3][1]) == pytest.approx(sum(accuracies[:3]) / 3, abs=1e-4)


def test_a_notebook_shows_a_table_with_names_escaped(compared):
    from xml.etree import ElementTree

    said = repr(compared)
    assert compared.title in said
    assert all(row.method in said for row in compared.rows)
    assert "answers" not in said
    text = compared._repr_html_()
    assert "<matching>" not in text
    assert "<title>" not in text
    shown = ElementTree.fromstring(text)
    assert shown.findtext("caption") == "A <title>"
    cells = [[cell.text for cell in line] for line in shown.iter("tr")]
    assert [[text or "" for text in line] for line in cells] == compared.cells()


def test_lightning_says_nothing_of_the_trainers_and_is_left_as_it_was(networks, caplog):
    logger = logging.getLogger("lightning.pytorch")
    # A command that ran in this process has silenced it.
    caplog.set_level(logging.INFO, logger=logger.name)
    before, filters = logger.level, list(warnings.filters)
    logger.addHandler(caplog.handler)
    compare(networks, OBJECTS[:1], Points(), progress=False)
    assert caplog.records == []
    assert (logger.level, list(warnings.filters)) == (before, filters)
    quiet_trainer()
    logger.removeHandler(caplog.handler)
    assert caplog.records != []


def test_figures_are_those_that_can_be_drawn(compared, networks):
    assert {"methods", "barrier", "alphas"} <= set(compared.figures())
    plain = compare(networks, OBJECTS[:1], Points(), progress=False)
    assert not {"barrier", "alphas"} & set(plain.figures())


def test_saving_writes_what_the_command_writes(compared, paths, tmp_path, capsys):
    config = {
        "checkpoints": [str(path) for path in paths],
        "model": MODEL,
        "data": DATA,
        "recipes": RECIPES,
        "barrier": 3,
        "title": "A <title>",
    }
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(config))
    command = tmp_path / "command"
    main(["compare", "-c", str(tmp_path / "compare.yaml"), "--output", str(command)])
    saved = compared.save(tmp_path / "saved")
    assert saved == tmp_path / "saved"
    assert files(saved) == files(command)
    assert {"results.csv", "results.json", "report.md", "barrier.png"} <= set(files(saved))
    names = [row["method"] for row in table(saved / "results.csv")]
    assert names[:3] == ["network 1", "network 2", "network 3"]
    unnamed = [
        [{**row, "method": ""} for row in without_times(table(folder / "results.csv"))]
        for folder in (saved, command)
    ]
    assert unnamed[0] == unnamed[1]
    ours, theirs = (json.loads((one / "results.json").read_text()) for one in (saved, command))
    assert ours.keys() == theirs.keys()
    assert ours["lines"] == theirs["lines"]
    assert list(ours["ingredients"].values()) == list(theirs["ingredients"].values())
    for name in files(saved / "merges"):
        found, wanted = (
            read_checkpoint(folder / "merges" / name).state_dict for folder in (saved, command)
        )
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        compared.save(saved)


def test_a_saved_merge_is_that_of_the_command(networks, paths, tmp_path, capsys):
    words = ["merge", "--checkpoints", f"[{', '.join(map(str, paths))}]"]
    words += ["--recipe", json.dumps(RECIPES[2]), "--model", json.dumps(MODEL)]
    main([*words, "--data", json.dumps(DATA), "--output", str(tmp_path / "command")])
    result = merge(networks, OBJECTS[2], Points(), progress=False, output=tmp_path / "saved")
    assert files(tmp_path / "saved") == files(tmp_path / "command")
    assert files(tmp_path / "saved") == ["merged.ckpt", "result.json"]
    ours, theirs = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("saved", "command")
    )
    assert ours.keys() == theirs.keys()
    assert without_times([ours["measurement"]]) == without_times([theirs["measurement"]])
    merged = Learner()
    merged.load_state_dict(read_checkpoint(tmp_path / "saved/merged.ckpt").state_dict)
    torch.testing.assert_close(merged.state_dict(), result.merged["NP"].state_dict())
    with pytest.raises(OutputExistsError):
        merge(networks, OBJECTS[2], Points(), output=tmp_path / "saved")
    with pytest.raises(OutputExistsError):
        result.save(tmp_path / "saved")
    (tmp_path / "saved/merged.ckpt").write_text("spoiled")
    result.save(tmp_path / "saved", overwrite=True)
    found = read_checkpoint(tmp_path / "saved/merged.ckpt").state_dict
    torch.testing.assert_close(found, dict(merged.state_dict()))


class Untyped(Learner):
    """A network whose arguments have no types, as people write them."""

    def __init__(self, norm, *, activation="relu"):
        super().__init__(norm=norm)
        self.activation = activation


def test_arguments_without_types_are_passed_on(paths, networks, tmp_path, capsys):
    model = {
        "class_path": f"{__name__}.Untyped",
        "init_args": {"norm": False, "activation": "rectifier"},
    }
    merged = merge(paths, OBJECTS[0], Points(), model=model, progress=False).merged["Mean"]
    assert merged.activation == "rectifier"
    words = ["merge", "--checkpoints", f"[{', '.join(map(str, paths))}]"]
    words += ["--recipe", json.dumps(RECIPES[0]), "--model", json.dumps(model)]
    main([*words, "--data", json.dumps(DATA), "--output", str(tmp_path / "out")])
    state = read_checkpoint(tmp_path / "out/merged.ckpt").state_dict
    torch.testing.assert_close(state, average(states_of(networks)))


def test_several_numbers_of_networks(networks):
    result = compare(networks, OBJECTS[:1], Points(), pool_sizes=[2, 3], progress=False)
    assert list(result.merged) == ["Mean, 2 ingredients", "Mean, 3 ingredients"]
    for size in (2, 3):
        found = result.merged[f"Mean, {size} ingredients"].state_dict()
        torch.testing.assert_close(dict(found), average(states_of(networks[:size])))
    # The plain name is the first one's.
    found = result.merged["Mean"].state_dict()
    torch.testing.assert_close(dict(found), average(states_of(networks[:2])))


def test_what_is_wrong_is_one_line(networks, paths):
    class Other(Learner):
        def __init__(self):
            super().__init__(norm=True)

    calls = [
        (lambda: merge([], OBJECTS[0], Points()), "give two or more"),
        (lambda: merge(networks[:1], OBJECTS[0], Points()), "two"),
        (lambda: merge(paths, OBJECTS[0], Points()), "does not say what network it is of"),
        (lambda: merge(networks, OBJECTS[3], Points()), "'All' is an ensemble"),
        (lambda: merge([networks[0], Other()], OBJECTS[0], Points()), "network 2"),
        (lambda: merge([networks[0], "no.ckpt"], OBJECTS[0], Points()), "no.ckpt: no such file"),
        (lambda: merge(networks, {"name": "x", "aggregate": "Men"}, Points()), "recipe 'x'"),
        (lambda: merge(networks, OBJECTS[0], {"class_path": "NoData"}), "data"),
        (lambda: compare(networks, [], Points()), "there are no recipes"),
        (lambda: compare(networks, OBJECTS, Points(), pool_sizes=[4]), "pool_sizes"),
        (lambda: compare(networks, OBJECTS, Points(), barier=3), "no option 'barier'"),
        (lambda: compare(networks, OBJECTS, Points(), barrier=1), "barrier is 1"),
        (lambda: run_study("nowhere.yaml", "out"), "nowhere.yaml"),
    ]
    for call, message in calls:
        with pytest.raises(MergeError, match=message):
            call()


def test_a_recipe_that_does_not_suit_is_refused_before_anything_is_run(networks):
    with pytest.raises(CheckpointError, match="no such file"):
        compare(
            networks,
            [
                OBJECTS[0],
                {
                    "name": "t",
                    "aggregate": {"class_path": "TIES", "init_args": {"pretrained": "gone.ckpt"}},
                },
            ],
            Points(),
            on_row=lambda row: pytest.fail(row.method),
        )


COMMANDS = sorted((Path(lightning_merge.__file__).parent / "commands").glob("*.py"))


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_commands_parse_call_and_print(path):
    tree = ast.parse(path.read_text())
    functions = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)]
    lengths = {one.name: one.end_lineno - one.lineno + 1 for one in functions}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_a_network_that_is_given_twice_is_named(networks):
    with pytest.warns(UserWarning, match="network 3 has the same weights as network 1, so one"):
        merge([*networks[:2], networks[0]], OBJECTS[0], DATA, model=MODEL)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*the same weights.*")
        merge(networks, OBJECTS[0], DATA, model=MODEL)
