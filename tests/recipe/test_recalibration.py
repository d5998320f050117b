"""Recipes recalibrate a merge as they say, or say why they cannot."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_contexts import Perceptron, made_context
from torch import nn

from lightning_merge import (
    ActivationMatching,
    Average,
    CCAMatching,
    FineTune,
    LogitsEnsemble,
    NPMerge,
    Recipe,
    WeightMatching,
    average,
    reset_batchnorm,
)
from lightning_merge.align import TransportMatching
from lightning_merge.errors import ConfigError
from lightning_merge.recalibrate import Repair
from lightning_merge.recipe.aligning import align
from lightning_merge.recipe.build import build_recipe
from lightning_merge.recipe.recalibrations import Renormalisation


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 2.0]])
def test_repair_aims_at_the_aligned_ingredients_weighted_as_their_average(weights):
    context = made_context(3)
    module = Recipe("R", Average(weights), ActivationMatching(), "repair")(context).module
    states = align(ActivationMatching(), context).states
    x = context.data.statistics_dataloader().dataset.tensors[0]
    shares = torch.tensor(weights or [1.0] * 3) / sum(weights or [1.0] * 3)
    networks = [context.build(state).eval() for state in states]
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


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 2.0]])
def test_least_squares_aim_at_the_aligned_ingredients_weighted_as_their_average(weights):
    context = made_context(3)
    made = Recipe("R", Average(weights), ActivationMatching(), "least-squares")(context)
    states = align(ActivationMatching(), context).states
    plain = context.build(average(states, weights)).eval()
    x = context.data.statistics_dataloader().dataset.tensors[0]
    shares = torch.tensor(weights or [1.0] * 3) / sum(weights or [1.0] * 3)
    with torch.no_grad():
        outputs = torch.stack([context.build(state).eval()(x) for state in states])
        goal = (shares[:, None, None] * outputs).sum(0)
        error = (made.module.eval()(x) - goal).square().mean()
        assert error < 0.5 * (plain(x) - goal).square().mean()
    assert made.labelled_examples in (0, None)
    Perceptron().load_state_dict(made.module.state_dict())


@pytest.mark.parametrize("matching", [CCAMatching(gamma=1.0), TransportMatching()])
def test_least_squares_are_refused_where_aligned_ingredients_compute_something_else(matching):
    recipe = Recipe("R", Average(), matching, "least-squares")
    with pytest.raises(ConfigError, match=f"{type(matching).__name__} changes that"):
        recipe.check(made_context().module)


def test_reset_is_reset():
    context = made_context(norm=True)
    module = Recipe("R", Average(), WeightMatching(), "batchnorm")(context).module
    expected = context.build(average(align(WeightMatching(), context).states))
    reset_batchnorm(expected, context.data.statistics_dataloader())
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
    context = made_context(bias=False)
    with pytest.raises(ConfigError, match=r"recipe 'X'.*'net.0' and 1 more has none.*Perceptron"):
        Recipe("X", Average(), None, "repair")(context)


@pytest.mark.parametrize("norm", [False, True])
def test_a_recipe_with_outputs_changes_the_last_layer_alone(norm):
    context = made_context(norm=norm)
    module = Recipe("X", Average(), None, "outputs")(context).module
    plain = average(context.states)
    last = list(plain)[-2:]
    for name, value in module.state_dict().items():
        assert torch.equal(value, plain[name]) == (name not in last), name


def test_a_path_measures_its_parents_once(monkeypatch):
    from lightning_merge.recipe.recalibrations import renormalisation

    context = made_context()
    made = []

    class Counted(Repair):
        def __init__(self, *args):
            made.append(self)
            super().__init__(*args)

    monkeypatch.setattr(renormalisation, "Repair", Counted)
    recalibrate = Renormalisation().prepare(context.states, context)
    assert not made
    for weights in ([0.5, 0.5], [1.0, 0.0]):
        module = context.build(average(context.states, weights))
        recalibrate(module, weights)
    assert len(made) == 1
    # With all the weight on one ingredient there is nothing to correct.
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, context.states[0][name], rtol=1e-4, atol=1e-5)


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
    recipe = build_recipe(
        {"name": "X", "aggregate": "Average", "align": align, "recalibrate": recalibrate}
    )
    assert isinstance(recipe.align, kind)
    assert recipe.recalibrate == recalibrate
    arguments = align.get("init_args", {}) if isinstance(align, dict) else {}
    assert all(getattr(recipe.align, name) == value for name, value in arguments.items())


def test_alignments_are_found_once_for_equal_matchings_only():
    context = made_context()
    first, again, other, chosen = (
        align(matching, context).states[1]
        for matching in (
            CCAMatching(gamma=0.1),
            CCAMatching(gamma=0.1),
            CCAMatching(gamma=10.0),
            CCAMatching(candidates=[0.1]),
        )
    )
    assert again is first
    assert not torch.equal(other["net.0.weight"], first["net.0.weight"])
    assert chosen is not first
    assert all(torch.equal(value, first[name]) for name, value in chosen.items())


def test_statistics_from_some_examples_are_those_of_some_examples():
    context = made_context(norm=True, statistics_examples=40)
    batches = list(context.statistics())
    x = torch.cat([batch[0] for batch in batches])
    everything = context.data.statistics_dataloader().dataset.tensors[0]
    rows = [int((everything == row).all(1).nonzero()) for row in x]
    assert len(rows) == len(set(rows)) == 40
    # Not the first ones, and the same ones each time.
    assert max(rows) >= 40
    assert torch.equal(torch.cat([batch[0] for batch in context.statistics()]), x)
    module = copy.deepcopy(context.build(context.states[0]))
    context.reset_batchnorm(module)
    with torch.no_grad():
        values = [module.net[0](batch[0]) for batch in batches]
    mean = torch.cat(values).mean(0)
    torch.testing.assert_close(module.net[1].running_mean, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("examples", [0, 1, -3])
def test_too_few_statistics_examples_are_refused(examples):
    with pytest.raises(ConfigError, match="statistics_examples is"):
        made_context(statistics_examples=examples)


def test_a_loader_without_an_index_is_refused():
    context = made_context(norm=True, statistics_examples=10)
    context.data.statistics_dataloader = lambda: [torch.randn(4, 6)]
    with pytest.raises(ConfigError, match="leave statistics_examples out"):
        context.reset_batchnorm(nn.BatchNorm1d(6))


def test_a_network_without_a_layer_to_correct_is_refused():
    class Flat(Perceptron):
        """A last layer alone."""

        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 3)

    states = [Flat().state_dict() for _ in range(2)]
    context = replace(made_context(), module=Flat(), states=states)
    with pytest.raises(ConfigError, match="recipe 'X': Flat has no hidden layer that REPAIR can"):
        Recipe("X", Average(), None, "repair")(context)
