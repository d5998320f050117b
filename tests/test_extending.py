"""Every example of docs/extending.md runs, and what it registers is used like the built-in ones."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from tiny_contexts import Points, trained

from lightning_merge import PermutationSpec, compare
from lightning_merge.align import matchings
from lightning_merge.cli import main
from lightning_merge.measure.sweep import sweeps
from lightning_merge.plots.figure import figures
from lightning_merge.recipe.aggregate import aggregates
from lightning_merge.recipe.recalibration import recalibrations
from lightning_merge.recipe.selection import selections
from lightning_merge.study.store import Store
from lightning_merge.study.work import execute, make_work, work_kinds

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
REGISTRIES = (aggregates, figures, matchings, recalibrations, selections, sweeps, work_kinds)


@pytest.fixture(scope="module")
def page():
    """The names that the page's examples define; what they register is taken away afterwards."""
    before = []
    for registry in REGISTRIES:
        registry.load()
        before.append(dict(registry._entries))
    # A module of its own, so that the classes can be named by a path.
    module = types.ModuleType("page_of_extending")
    sys.modules[module.__name__] = module
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(PAGE), "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)


@pytest.fixture(scope="module")
def networks():
    return [trained(seed, norm=True) for seed in range(3)]


@pytest.mark.usefixtures("page")
def test_every_kind_is_listed(capsys):
    for kind, name in (
        ("aggregates", "Median"),
        ("matchings", "NormMatching"),
        ("recalibrations", "momentum"),
        ("selections", "Best"),
        ("sweeps", "noise"),
        ("figures", "noise"),
        ("work_kinds", "count_parameters"),
    ):
        main(["list", kind])
        assert name in capsys.readouterr().out


@pytest.mark.usefixtures("page")
def test_the_examples_are_used_together(networks, tmp_path):
    recipes = [
        {"name": "Median", "aggregate": "Median"},
        {
            "name": "By norms",
            "aggregate": "Average",
            "align": "NormMatching",
            "recalibrate": "momentum",
        },
        {
            "name": "Best two",
            "aggregate": "Average",
            "select": {"class_path": "page_of_extending.Best", "init_args": {"size": 2}},
        },
        {"name": "Ensemble", "aggregate": "LogitsEnsemble"},
    ]
    folder = tmp_path / "out"
    found = compare(
        networks, recipes, Points(), noise=[0.0, 5.0], barrier=2, output=folder, progress=False
    )
    states = [network.state_dict() for network in networks]
    middle = torch.stack([s["net.0.weight"] for s in states]).median(0).values
    merged = found.merged["Median"].state_dict()
    torch.testing.assert_close(merged["net.0.weight"], middle)
    rows = {row.method: row for row in found.rows}
    noise = {
        (one["name"], one["deviation"]): one["accuracy"]
        for one in json.loads((folder / "results.json").read_text())["noise"]
    }
    assert noise["Median", 0.0] == pytest.approx(rows["Median"].accuracy)
    assert ("Ensemble", 0.0) not in noise
    report = (folder / "report.md").read_text()
    assert "| method | noise | accuracy |" in report
    assert "![noise](noise.png)" in report
    assert (folder / "noise.svg").is_file()
    assert "Norms + running averages" in report
    assert "2 of 3 ingredients" in report


def test_the_matching_keeps_the_function_and_sorts_by_norm(page, networks):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    spec = PermutationSpec.from_model(networks[0], x)
    state = page.NormMatching().align(spec, networks[0], networks[1], [])
    other = trained(1, norm=True)
    other.load_state_dict(state)
    torch.testing.assert_close(other(x), networks[1](x))
    assert any(not torch.equal(state[k], v) for k, v in networks[1].state_dict().items())
    norms = [net["net.0.weight"].norm(dim=1) for net in (networks[0].state_dict(), state)]
    assert torch.equal(norms[0].argsort(), norms[1].argsort())


@pytest.mark.usefixtures("page")
def test_a_piece_of_work_of_ones_own(tmp_path):
    store = Store(tmp_path)
    store.put("a", {"x": 1}, {"state_dict": {"w": torch.ones(3, 2)}})
    store.put("b", {"x": 1}, {"state_dict": {"w": torch.ones(4)}})
    work = make_work("count_parameters", "count", 0, {}, ("a", "b"))
    execute(work, store)
    assert store.result(work.key)["parameters"] == 10
