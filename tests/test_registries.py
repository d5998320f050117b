"""A part of one's own: one decorator, and YAML, Python, `list`, figures and reports know it."""

import json
from importlib import import_module

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from strangers import quiet_trainer
from tiny_contexts import Perceptron, Points, trained

from lightning_merge import (
    Aggregate,
    Average,
    Matching,
    Merged,
    Proposal,
    Recalibration,
    Recipe,
    Selection,
    Sweep,
    average,
    compare,
    run_study,
)
from lightning_merge.align import matchings
from lightning_merge.cli import main
from lightning_merge.commands.list import KINDS
from lightning_merge.errors import ConfigError
from lightning_merge.measure.sweep import sweeps
from lightning_merge.plots.figure import figure, figures
from lightning_merge.recipe.aggregate import aggregates
from lightning_merge.recipe.build import build_recipe
from lightning_merge.recipe.recalibration import recalibrations
from lightning_merge.recipe.selection import selections


@aggregates.register(paper="Nobody 2001, On shares", needs="a share")
class TowardsFirst(Aggregate):
    """The first ingredient's share, the others in equal parts.

    Args:
        share: Of the first one.
    """

    label = "Towards"

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def weights_of_mean(self, count):
        return [self.share] + [(1 - self.share) / (count - 1)] * (count - 1)

    def __call__(self, states, context):
        return Merged(context.build(average(states, self.weights_of_mean(len(states)))))


@matchings.register(paper="Nobody 2002, On mirrors")
class Backwards(Matching):
    """Every group of units in the reverse order."""

    label = "Mirror"
    needs_data = False

    def align(self, spec, model_a, model_b, batches, *, score=None, progress=False):
        order = {group.name: torch.arange(group.size).flip(0) for group in spec.groups}
        return spec.apply(model_b.state_dict(), order)


@recalibrations.register("no-bias", paper="Nobody 2003, On biases", needs="a last bias")
class WithoutBias(Recalibration):
    """Takes the last layer's bias away."""

    label = "no bias"

    def prepare(self, states, context):
        def recalibrate(module, weights=None):
            torch.nn.init.zeros_(module.net[-1].bias)

        return recalibrate


@selections.register(paper="Nobody 2004, On ends")
class Ends(Selection):
    """The first ingredient and the last one."""

    def propose(self, states, context):
        return Proposal([[0, len(states) - 1]], {"by": "position"})


@sweeps.register("norms", paper="Nobody 2005, On norms")
class WeightNorms(Sweep):
    """The norm of each merge's first layer, multiplied."""

    option = "weight_norms"
    type = int
    default = 0
    help = "by how much to multiply norms"
    key = "norms"
    title = "Norms"
    reads_merges = True

    def check(self, value, ingredients):
        if value < 0:
            raise ConfigError(f"weight_norms is {value}: choose 0 or more")

    def settings(self, value, recipes, sizes):
        names = [build_recipe(recipe).name for recipe in recipes]
        return {"times": value, "of": [[name, size] for name in names for size in sizes]}

    def measure(self, context, settings, weights):
        return [
            {"name": name, "norm": settings["times"] * norm(weights(name, size))}
            for name, size in settings["of"]
        ]

    def tables(self, found):
        return [
            [
                ["merge", "norm of its first layer"],
                *([x["name"], f"{x['norm']:.3f}"] for x in found),
            ]
        ]


@figure("norms", lacking="holds no norms: use --weight_norms", paper="Nobody 2006", needs="norms")
def drawn_norms(stored):
    """A bar for each norm."""
    norms = stored.first.get("norms")
    if not norms:
        return {}
    made = Figure()
    axes = made.subplots()
    axes.bar([one["name"] for one in norms], [one["norm"] for one in norms])
    axes.set_title(stored.heading("norms of own merges"))
    return {"norms": made}


# Out of the registries again: they are in only while these tests run.
OWN = {
    registry: {name: registry._entries.pop(name)}
    for registry, name in (
        (aggregates, "TowardsFirst"),
        (matchings, "Backwards"),
        (recalibrations, "no-bias"),
        (selections, "Ends"),
        (sweeps, "norms"),
        (figures, "norms"),
    )
}
RECIPES = [
    {
        "name": "Towards",
        "aggregate": {"class_path": f"{__name__}.TowardsFirst", "init_args": {"share": 0.25}},
    },
    {"name": "Mirrored", "aggregate": "Average", "align": f"{__name__}.Backwards"},
    {"name": "Bare", "aggregate": "Average", "recalibrate": "no-bias"},
    {"name": "Outer", "aggregate": "Average", "select": f"{__name__}.Ends"},
]


@pytest.fixture(scope="module", autouse=True)
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        for registry, entries in OWN.items():
            # Built-in entries first, or they would be taken out with these.
            registry.load()
            patch.setattr(registry, "_entries", {**registry._entries, **entries})
        yield


@pytest.fixture(scope="module")
def networks():
    return [trained(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory):
    """What `compare` writes for a configuration that names all of them."""
    folder = tmp_path_factory.mktemp("own")
    paths = [folder / f"{number}.pt" for number in range(3)]
    for network, path in zip(networks, paths, strict=True):
        torch.save(network.state_dict(), path)
    config = {
        "checkpoints": [str(path) for path in paths],
        "model": {"class_path": "tiny_contexts.Perceptron"},
        "data": {"class_path": "tiny_contexts.Points"},
        "recipes": RECIPES,
        "barrier": 3,
        "weight_norms": 2,
        "output": str(folder / "out"),
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(config))
    main(["compare", "-c", str(folder / "compare.yaml")])
    return folder / "out"


def norm(state):
    return float(state["net.0.weight"].norm())


def flipped(state):
    """A perceptron's weights with both hidden layers in the reverse order."""
    made = dict(state)
    for name, axes in (
        ("net.0.weight", [0]),
        ("net.0.bias", [0]),
        ("net.2.weight", [0, 1]),
        ("net.2.bias", [0]),
        ("net.4.weight", [1]),
    ):
        made[name] = state[name].flip(axes)
    return made


@pytest.fixture(scope="module")
def expected(networks):
    """Each recipe's weights, computed by hand."""
    first, second, third = (network.state_dict() for network in networks)

    def mean(shares, *states):
        return {
            name: sum(share * state[name] for share, state in zip(shares, states, strict=True))
            for name in first
        }

    bare = mean([1 / 3] * 3, first, second, third)
    bare["net.4.bias"] = torch.zeros(3)
    return {
        "Towards": mean([0.25, 0.375, 0.375], first, second, third),
        "Mirrored": mean([1 / 3] * 3, first, flipped(second), flipped(third)),
        "Bare": bare,
        "Outer": mean([0.5, 0.5], first, third),
    }


def loss(state):
    """The test loss of a perceptron's weights."""
    module = Perceptron()
    module.load_state_dict(state)
    (metrics,) = quiet_trainer().test(module, datamodule=Points(), verbose=False)
    return metrics["test_loss"]


def test_a_configuration_file_names_them(folder, expected):
    rows = json.loads((folder / "results.json").read_text())["measurements"]
    assert [row["method"] for row in rows[3:]] == list(expected)
    for row in rows[3:]:
        assert row["loss"] == pytest.approx(loss(expected[row["method"]]), rel=1e-4)
        path = folder / "merges" / f"{row['method'].lower()}.ckpt"
        merged = torch.load(path, weights_only=True)["state_dict"]
        torch.testing.assert_close(merged, expected[row["method"]])


def test_results_hold_what_they_measured(folder, expected):
    results = json.loads((folder / "results.json").read_text())
    assert results["norms"] == [
        {"name": name, "norm": pytest.approx(2 * norm(state), rel=1e-4)}
        for name, state in expected.items()
    ]
    assert [path["name"] for path in results["lines"]] == ["direct", "Mirror", "direct + no bias"]
    (choice,) = results["choices"]["Outer"]
    assert (choice["by"], choice["details"]) == ("Ends", {"by": "position"})


def test_the_report_shows_them(folder, expected):
    report = (folder / "report.md").read_text()
    for name, state in expected.items():
        assert f"\n| {name} |" in report
        assert f"| {name} | {2 * norm(state):.3f} |" in report
    assert "| merge | norm of its first layer |\n| --- | ---: |\n" in report
    assert "![norms](norms.png)" in report
    assert "chosen by Ends" in report
    assert "| Mirror |" in report
    assert "| direct + no bias |" in report


def test_figures_show_them(folder, tmp_path, capsys):
    assert "norms of own merges" in (folder / "norms.svg").read_text()
    assert "Mirror" in (folder / "barrier.svg").read_text()
    assert "Towards" in (folder / "methods.svg").read_text()
    words = ["plot", "norms", str(folder / "results.json"), "--output", str(tmp_path / "mine")]
    main([*words, "--title", "Title"])
    assert capsys.readouterr().out.split() == [f"{tmp_path}/mine.png", f"{tmp_path}/mine.svg"]
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["plot", "norms", str(tmp_path / "empty.json")])
    assert "holds no norms: use --weight_norms" in capsys.readouterr().err


def test_python_takes_them_as_objects(networks, expected):
    recipes = [
        Recipe("Towards", TowardsFirst(0.25)),
        Recipe("Mirrored", Average(), Backwards()),
        Recipe("Bare", Average(), recalibrate=WithoutBias()),
        Recipe("Outer", Average(), select=Ends()),
    ]
    result = compare(networks, recipes, Points(), barrier=2, weight_norms=3, progress=False)
    for name, state in expected.items():
        torch.testing.assert_close(dict(result.merged[name].state_dict()), state)
    assert {one["name"]: one["norm"] for one in result.swept["norms"]} == pytest.approx(
        {name: 3 * norm(state) for name, state in expected.items()}, rel=1e-4
    )
    (axes,) = result.figures()["norms"].axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([3 * norm(state) for state in expected.values()], rel=1e-4)
    with pytest.raises(ConfigError, match="weight_norms is -1"):
        compare(networks, recipes, Points(), weight_norms=-1)
    with pytest.raises(ConfigError, match=r"no option 'weight_norm': .* weight_norms"):
        compare(networks, recipes, Points(), weight_norm=1)


def test_a_study_does_them_as_work(tmp_path):
    study = {
        "model": {"class_path": "tiny_contexts.Learner"},
        "data": {"class_path": "tiny_contexts.Points"},
        "training": {"max_epochs": 1},
        "recipes": RECIPES[:2],
        "weight_norms": 2,
    }
    result = run_study(study, tmp_path / "out", progress=False)
    assert result.swept["norms"] == [
        {
            "name": name,
            "norm": pytest.approx(2 * norm(result.merged[name].state_dict()), rel=1e-6),
        }
        for name in ("Towards", "Mirrored")
    ]
    assert (tmp_path / "out/norms.png").is_file()


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("aggregates", ["TowardsFirst", "The first ingredient's share", "a share", "Nobody 2001"]),
        ("matchings", ["Backwards", "Every group of units in the reverse order.", "Nobody 2002"]),
        ("recalibrations", ["no-bias", "Takes the last layer's bias", "a last bias", "2003"]),
        ("selections", ["Ends", "The first ingredient and the last one.", "Nobody 2004"]),
        ("sweeps", ["norms", "The norm of each merge's first layer", "Nobody 2005"]),
        ("figures", ["norms", "A bar for each norm.", "norms", "Nobody 2006"]),
    ],
)
def test_they_are_listed_among_the_others(capsys, kind, line):
    main(["list", kind])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "what", "it", "does", "needs", "paper"]
    (own,) = [one for one in lines if one.split()[0] == line[0]]
    assert all(part in own for part in line)
    assert len(lines) == 1 + len(list(getattr(import_module(KINDS[kind]), kind)))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_everything_that_is_listed_says_what_it_does(kind):
    for entry in getattr(import_module(KINDS[kind]), kind):
        assert entry.line.endswith("."), entry.name


def test_the_option_is_in_the_commands_help(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    assert "by how much to multiply norms" in " ".join(capsys.readouterr().out.split())


def test_a_name_is_for_one_thing():
    with pytest.raises(ConfigError, match=r"two aggregates are called 'TowardsFirst': .*Other"):

        @aggregates.register("TowardsFirst")
        class Other(Aggregate):
            pass

    # The same thing again is no other: a module may be loaded anew.
    assert aggregates.register()(TowardsFirst) is TowardsFirst
    assert aggregates.get("TowardsFirst").value is TowardsFirst
    with pytest.raises(ConfigError, match=r"'Toward' is none of the aggregates: .*TowardsFirst"):
        aggregates.get("Toward")
