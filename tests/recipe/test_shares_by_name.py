"""Weights per ingredient and per pattern of names in recipes, TIES' sum, and larger scales."""

import copy

import pytest
import torch
from strangers import quiet_trainer
from tiny_contexts import Perceptron, Points, made_context, trained

from lightning_merge import DARE, TIES, Average, Context, Recipe, TaskArithmetic, task_vector, ties
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.build import build_recipe

FIRST = r"^net\.0\."


@pytest.fixture(scope="module")
def tuned():
    """A start, and three networks near it."""
    start = trained(50, steps=4)
    made = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        state = copy.deepcopy(start.state_dict())
        for value in state.values():
            value += 0.05 * torch.randn(value.shape, generator=generator)
        made.append(state)
    return start.state_dict(), made


def context_of(tuned, count=2):
    start, states = tuned
    names = [f"n{number}" for number in range(count)]
    data = Points(testable=False)
    settings = {"progress": False, "pretrained": start}
    return Context(Perceptron(), states[:count], names, data, quiet_trainer, **settings)


def built(name, **arguments):
    return build_recipe({"name": "R", "aggregate": {"class_path": name, "init_args": arguments}})


def test_an_average_has_its_own_shares_where_a_pattern_is_found(tuned):
    context = context_of(tuned)
    module = built("Average", weights={FIRST: [3.0, 1.0]})(context).module
    a, b = context.states
    for name, value in module.state_dict().items():
        share = 0.75 if name.startswith("net.0.") else 0.5
        torch.testing.assert_close(value, share * a[name] + (1 - share) * b[name])


def test_task_arithmetic_multiplies_each_vector(tuned):
    context = context_of(tuned)
    start, (a, b) = tuned[0], context.states
    whole = built("TaskArithmetic", scale=0.5, weights=[2.0, -1.0])(context).module
    by_name = built("TaskArithmetic", scale=0.5, weights={FIRST: [2.0, -1.0]})(context).module
    for name, value in whole.state_dict().items():
        step = 2 * (a[name] - start[name]) - (b[name] - start[name])
        torch.testing.assert_close(value, start[name] + 0.5 * step)
        if not name.startswith("net.0."):
            step = (a[name] - start[name]) + (b[name] - start[name])
        torch.testing.assert_close(by_name.state_dict()[name], start[name] + 0.5 * step)


@pytest.mark.parametrize("merge", ["mean", "sum"])
@pytest.mark.parametrize("weights", [None, [1.0, 0.25, 2.0], {FIRST: [0.0, 1.0, 1.0]}])
def test_ties_sums_or_averages_by_hand(tuned, merge, weights):
    context = context_of(tuned, 3)
    start = tuned[0]
    module = built("TIES", scale=1.5, density=1.0, merge=merge, weights=weights)(context).module
    for name, value in module.state_dict().items():
        own = [1.0] * 3 if weights is None else weights
        if isinstance(weights, dict):
            own = weights[FIRST] if name.startswith("net.0.") else [1.0] * 3
        shares = torch.tensor(own).view(3, *[1] * value.dim())
        vectors = torch.stack([state[name] - start[name] for state in context.states])
        weighted = shares * vectors
        agree = (weighted.sign() == weighted.sum(0).sign()) & (weighted != 0)
        step = (weighted * agree).sum(0)
        if merge == "mean":
            step = step / (shares * agree).sum(0).clamp(min=1e-12)
        torch.testing.assert_close(value, start[name] + 1.5 * step, rtol=1e-4, atol=1e-5)


def test_the_authors_scales_go_on_beyond_one(tuned):
    context = context_of(tuned)
    made = built("TIES", candidates="authors", merge="sum")(context)
    tried = sorted(map(float, made.choices[0].details["scores"]))
    assert tried == [round(0.8 + 0.1 * step, 1) for step in range(18)]
    vectors = [task_vector(state, tuned[0]) for state in context.states]
    expected = ties(tuned[0], vectors, made.choices[0].details["scale"], merge="sum")
    for name, value in made.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    own = built("TIES", candidates=[1.7, 3.0])(context)
    assert sorted(own.choices[0].details["scores"]) == ["1.7", "3"]


def test_dare_passes_its_weights_on(tuned):
    context = context_of(tuned)
    plain = Recipe("D", DARE(drop=0.0, scale=1.0, weights=[2.0, 1.0]))(context).module
    summed = Recipe("T", TaskArithmetic(scale=1.0, weights=[2.0, 1.0]))(context).module
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, summed.state_dict()[name])
    both = {"density": 0.5, "scale": 1.0, "merge": "sum", "weights": [2.0, 1.0]}
    dropped = Recipe("D", DARE(drop=0.0, **both))(context).module
    trimmed = Recipe("T", TIES(**both))(context).module
    for name, value in dropped.state_dict().items():
        torch.testing.assert_close(value, trimmed.state_dict()[name])


@pytest.mark.parametrize("kind", ["Average", "TaskArithmetic", "TIES", "DARE"])
@pytest.mark.parametrize("weights", [[1.0], {FIRST: [1.0, 2.0, 3.0]}, [1.0, float("nan")]])
def test_weights_that_do_not_go_with_the_ingredients_are_refused_at_once(tuned, kind, weights):
    recipe = built(kind, weights=weights)
    with pytest.raises(ConfigError, match=rf"{kind}: . weights"):
        recipe.check_context(context_of(tuned))


def test_patterns_that_are_in_no_name_are_refused(tuned):
    context = context_of(tuned)
    with pytest.raises(ConfigError, match="for no tensor"):
        built("Average", weights={"layer9": [1.0, 2.0]}).check_context(context)
    with pytest.raises(ConfigError, match="for no tensor"):
        built("TIES", scale=1.0, weights={"layer9": [1.0, 2.0]})(context)


def test_repair_wants_one_share_for_each_ingredient():
    with pytest.raises(ConfigError, match="one weight for each ingredient"):
        Recipe("R", Average({FIRST: [1.0, 2.0]}), None, "repair").check(made_context().module)
