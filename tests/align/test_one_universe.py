"""Many networks with all their symmetries: planted maps undone, cycles closed, in recipes too."""

import copy
import dataclasses

import pytest
import torch
from test_symmetric_matching import case, distance
from test_symmetries import output, shaken
from tiny_contexts import made_context
from torch import Tensor

from lightning_merge import average
from lightning_merge.align import (
    MergeMany,
    PermutationSpec,
    WeightMatching,
    agreement,
    matchings,
)
from lightning_merge.errors import AlignmentError
from lightning_merge.recipe.aligning import align

State = dict[str, Tensor]


def copies(name: str, count: int = 4) -> tuple[PermutationSpec, State, list[State]]:
    """A network, and those of the same function that random maps of every kind make of it."""
    spec, model, _ = case(name)
    generator = torch.Generator().manual_seed(7)
    own = spec.canonical(model)
    made = [spec.transform(own, spec.random_maps(generator)) for _ in range(count - 1)]
    return spec, model.state_dict(), [model.state_dict(), *made]


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_the_mean_of_copies_under_maps_of_every_kind_is_the_network(name: str) -> None:
    spec, own, states = copies(name)
    assert min(distance(own, state) for state in states[1:]) > 0.3
    assert distance(own, average(states)) > 0.3
    aligned = MergeMany(symmetries="all").align_many(spec, states)
    assert distance(own, average(aligned)) < 1e-6


def test_what_leads_from_one_copy_to_another_closes_every_cycle() -> None:
    spec, _, states = copies("vit", 3)
    into = MergeMany(symmetries="all").match(spec, states)
    canonical = [spec.canonical(state) for state in states]
    steps = [spec.compose(into[k], spec.inverse(into[(k + 1) % 3])) for k in range(3)]
    for k, maps in enumerate(steps):
        assert distance(spec.transform(canonical[k], maps), canonical[(k + 1) % 3]) < 1e-6
    around = spec.compose(spec.compose(steps[0], steps[1]), steps[2])
    assert distance(spec.transform(canonical[0], around), canonical[0]) < 1e-6


def test_networks_that_differ_keep_their_function_and_agree_more_than_in_pairs() -> None:
    spec, first, x = case("vit")
    models = [first, *(shaken(copy.deepcopy(first), seed) for seed in (5, 6))]
    states = [model.state_dict() for model in models]
    aligned = MergeMany(sweeps=2, symmetries="all").align_many(spec, models)
    for model, state in zip(models, aligned, strict=True):
        torch.testing.assert_close(
            output(model, state, x), output(model, {}, x), rtol=1e-9, atol=1e-9
        )
    pairs = WeightMatching(symmetries="all")
    star = [states[0], *(pairs.align(spec, first, model, []) for model in models[1:])]
    canonical = [[spec.canonical(state) for state in found] for found in (aligned, star, states)]
    values = [agreement(spec, found) for found in canonical]
    assert values[0] > values[1] > values[2]


def test_a_spec_of_permutations_is_refused_where_all_symmetries_are_wanted() -> None:
    spec, _, states = copies("perceptron")
    spec.symmetries = "permutation"
    with pytest.raises(AlignmentError, match="permutations only"):
        MergeMany(symmetries="all").match(spec, states)


@pytest.mark.parametrize("name", ["MergeMany", "CycleConsistentMatching"])
def test_a_recipe_aligns_all_ingredients_at_once(name: str) -> None:
    matching = matchings.get(name).value()
    context = made_context(count=3)
    found = align(matching, context)
    assert align(matching, context).states[2] is found.states[2]
    module = context.build(context.states[0])
    spec = PermutationSpec.from_model(module, torch.zeros(2, 6))
    expected = matching.align_many(spec, context.states)
    for state, other in zip(found.states, expected, strict=True):
        assert distance(state, other) == 0
    assert agreement(spec, found.states) > agreement(spec, context.states)
    # The first two alone are matched without the third.
    pair = align(matching, context.first(2)).states
    assert distance(pair[1], matching.align_many(spec, context.states[:2])[1]) == 0


def test_a_recipe_of_all_symmetries_undoes_factors_and_orders() -> None:
    context = made_context()
    own = context.states[0]
    module = context.build(own)
    spec = PermutationSpec.from_model(module, torch.zeros(2, 6), symmetries="all")
    assert {group.symmetry for group in spec.groups} == {"scaled"}
    generator = torch.Generator().manual_seed(3)
    moved = [spec.transform(own, spec.random_maps(generator)) for _ in range(3)]
    context = dataclasses.replace(context, states=[own, *moved], names=[*"abcd"])
    found = align(MergeMany(symmetries="all"), context)
    assert distance(own, average(moved)) > 0.1
    assert distance(own, average(found.states)) < 1e-5
