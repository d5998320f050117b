"""Recipes that share an aggregate object, or the cache of a context, give what each gives alone."""

from dataclasses import replace

import pytest
import torch
from tiny_contexts import Learner, made_context, trained

from lightning_merge import Average, CCAMatching, NPMerge, Recipe, TaskArithmetic, WeightMatching
from lightning_merge.recipe.aggregates import GreedyLogitsEnsemble, GreedySoup

AGGREGATES = {
    "mean": lambda: Average([2.0, 1.0, 1.0]),
    "search": GreedySoup,
    "ensemble": GreedyLogitsEnsemble,
    "scale": lambda: TaskArithmetic(candidates=[0.1, 0.4, 0.9]),
    "learned": lambda: NPMerge(max_epochs=1),
}


@pytest.fixture(scope="module")
def start():
    return trained(50, steps=4, norm=True).state_dict()


def context_from(start):
    return replace(made_context(3, norm=True, pretrained=start), module=Learner(norm=True))


def recipes_of(aggregate):
    align = None if aggregate.from_pretrained else WeightMatching()
    return [
        Recipe("as it is", aggregate, align),
        Recipe("reset", aggregate, align, "batchnorm"),
        Recipe("as it is, again", aggregate, align),
    ]


def content(made):
    return made.module.state_dict(), [choice.details for choice in made.choices]


@pytest.mark.parametrize("kind", AGGREGATES)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_a_shared_aggregate_serves_each_recipe_as_its_own_would(kind, order, start):
    alone = [content(one(context_from(start))) for one in recipes_of(AGGREGATES[kind]())]
    shared, context = AGGREGATES[kind](), context_from(start)
    before = dict(vars(shared))
    recipes = recipes_of(shared)
    together = {index: content(recipes[index](context)) for index in order}
    for index, (state, choices) in together.items():
        expected, chosen = alone[index]
        assert choices == chosen
        assert state.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in state.items())
    assert vars(shared) == before
    # The reset shows, so that one recipe's result could not stand for the other's.
    plain, reset = (state for state, _ in alone[:2])
    assert any(not torch.equal(value, reset[name]) for name, value in plain.items())


def test_copies_are_called_by_their_own_names():
    context = made_context(2, norm=True)
    states = [*context.states, context.states[1]]
    copies = replace(context, states=states, names=["first", "second", "its copy"])
    recipe = Recipe("soup", GreedySoup(), CCAMatching(candidates=[0.1]))
    named = [{choice.details["ingredient"] for choice in recipe(copies).choices[:2]}]
    for indices in ([0, 1], [0, 2]):
        *_, greedy = recipe(copies.of(indices)).choices
        named.append({line["ingredient"] for line in greedy.details["trace"]})
    assert named == [{"second", "its copy"}, {"first", "second"}, {"first", "its copy"}]
