"""Recipes recalibrate a merge as they say, or say why they cannot."""

import copy

import pytest
import torch
from tiny_pools import Perceptron, made_pool
from torch import nn

from lightning_merge.aggregate import average
from lightning_merge.align import ActivationMatching, CCAMatching, WeightMatching
from lightning_merge.errors import ConfigError
from lightning_merge.recalibrate import Repair, reset_batchnorm
from lightning_merge.recipe.aggregates import Average, FineTune, LogitsEnsemble, NPMerge
from lightning_merge.recipe.build import build_recipe
from lightning_merge.recipe.recipe import Recipe


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 2.0]])
def test_repair_aims_at_the_aligned_ingredients_weighted_as_their_average(weights):
    pool = made_pool(3)
    module, _ = Recipe("R", Average(weights), ActivationMatching(), "repair")(pool)
    states, _ = pool.align(ActivationMatching())
    x = pool.data.statistics_dataloader().dataset.tensors[0]
    shares = torch.tensor(weights or [1.0] * 3) / sum(weights or [1.0] * 3)
    networks = [pool.build(state).eval() for state in states]
    with torch.no_grad():
        goals = torch.stack([net.net[0](x).std(0, correction=0) for net in networks])
        now = module.net[0](x).std(0, correction=0)
        torch.testing.assert_close(now, (shares[:, None] * goals).sum(0), rtol=1e-4, atol=1e-5)
        second = torch.stack([net.net[:3](x).mean(0) for net in networks])
        torch.testing.assert_close(
            module.net[:3](x).mean(0), (shares[:, None] * second).sum(0), rtol=1e-4, atol=1e-4
        )
    plain = average(states, weights)
    assert not torch.allclose(module.state_dict()["net.0.weight"], plain["net.0.weight"])
    Perceptron().load_state_dict(module.state_dict())


def test_reset_is_reset():
    pool = made_pool(norm=True)
    module, _ = Recipe("R", Average(), WeightMatching(), "batchnorm")(pool)
    expected = pool.build(average(pool.align(WeightMatching())[0]))
    reset_batchnorm(expected, pool.data.statistics_dataloader())
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value)


@pytest.mark.parametrize(
    ("norm", "kind", "aggregate", "says"),
    [
        (True, "repair", Average(), "recipe 'X': .*without BatchNorm.*`recalibrate: batchnorm`"),
        (False, "batchnorm", Average(), "recipe 'X': .*no BatchNorm.*`recalibrate: repair`"),
        (False, "repair", LogitsEnsemble(), "recipe 'X': .*LogitsEnsemble has no such weights"),
        (False, "repair", FineTune(), "recipe 'X': .*FineTune has no such weights"),
        (False, "repair", NPMerge(), "recipe 'X': .*NPMerge has no such weights"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_computed(
    norm, kind, aggregate, says
):
    recipe = Recipe("X", aggregate, ActivationMatching(), kind)
    with pytest.raises(ConfigError, match=says):
        recipe.check(Perceptron(norm=norm))


def test_layers_without_a_bias_cannot_hold_the_correction():
    pool = made_pool(bias=False)
    with pytest.raises(ConfigError, match=r"recipe 'X'.*'net.0' and 1 more has none.*Perceptron"):
        Recipe("X", Average(), None, "repair")(pool)


def test_a_line_measures_its_parents_once(monkeypatch):
    from lightning_merge.study import recalibration

    pool = made_pool()
    made = []

    class Counted(Repair):
        def __init__(self, *args):
            made.append(self)
            super().__init__(*args)

    monkeypatch.setattr(recalibration, "Repair", Counted)
    recalibrate = recalibration.Recalibration("repair", pool.states, pool, "X")
    assert not made
    for weights in ([0.5, 0.5], [1.0, 0.0]):
        module = pool.build(average(pool.states, weights))
        recalibrate(module, weights)
    assert len(made) == 1
    # With all the weight on one ingredient there is nothing to correct.
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, pool.states[0][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("align", "kind"),
    [
        ("WeightMatching", WeightMatching),
        ({"class_path": "WeightMatching", "init_args": {"seed": 5}}, WeightMatching),
        ("CCAMatching", CCAMatching),
        ({"class_path": "CCAMatching", "init_args": {"gamma": 0.3}}, CCAMatching),
        ({"class_path": "lightning_merge.align.CCAMatching"}, CCAMatching),
    ],
)
@pytest.mark.parametrize("recalibrate", ["batchnorm", "repair", None])
def test_recipes_are_built_from_names(align, kind, recalibrate):
    import lightning_merge.commands.options  # noqa: F401

    recipe = build_recipe(
        {"name": "X", "aggregate": "Average", "align": align, "recalibrate": recalibrate}
    )
    assert isinstance(recipe.align, kind)
    assert recipe.recalibrate == recalibrate
    arguments = align.get("init_args", {}) if isinstance(align, dict) else {}
    assert all(getattr(recipe.align, name) == value for name, value in arguments.items())


def test_alignments_are_found_once_for_equal_matchings_only():
    pool = made_pool()
    first, _ = pool.align(CCAMatching(gamma=0.1))
    again, _ = pool.align(CCAMatching(gamma=0.1))
    other, _ = pool.align(CCAMatching(gamma=10.0))
    assert again[1] is first[1]
    assert not torch.equal(other[1]["net.0.weight"], first[1]["net.0.weight"])
    assert pool.align(CCAMatching(candidates=[0.1]))[0][1] is not first[1]
    assert len(pool._aligned) == 3


def test_statistics_from_some_examples_are_those_of_some_examples():
    pool = made_pool(norm=True, statistics_examples=40)
    batches = list(pool.statistics())
    x = torch.cat([batch[0] for batch in batches])
    everything = pool.data.statistics_dataloader().dataset.tensors[0]
    rows = [int((everything == row).all(1).nonzero()) for row in x]
    assert len(rows) == len(set(rows)) == 40
    # Not the first ones, and the same ones each time.
    assert max(rows) >= 40
    assert torch.equal(torch.cat([batch[0] for batch in pool.statistics()]), x)
    module = copy.deepcopy(pool.build(pool.states[0]))
    pool.reset_batchnorm(module)
    with torch.no_grad():
        values = [module.net[0](batch[0]) for batch in batches]
    mean = torch.cat(values).mean(0)
    torch.testing.assert_close(module.net[1].running_mean, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("examples", [0, 1, -3])
def test_too_few_statistics_examples_are_refused(examples):
    with pytest.raises(ConfigError, match="statistics_examples is"):
        made_pool(statistics_examples=examples)


def test_a_loader_without_an_index_is_refused():
    pool = made_pool(norm=True, statistics_examples=10)
    pool.data.statistics_dataloader = lambda: [torch.randn(4, 6)]
    with pytest.raises(ConfigError, match="leave statistics_examples out"):
        pool.reset_batchnorm(nn.BatchNorm1d(6))
