"""CCA's gamma is chosen on validation data, and the result says so."""

from dataclasses import replace

import pytest
import torch
from tiny_contexts import Perceptron, Points, made_context
from torch import nn

from lightning_merge import Average, CCAMatching, PermutationSpec, Recipe, average, reset_batchnorm
from lightning_merge.errors import ConfigError
from lightning_merge.measure.outcome import run_recipe
from lightning_merge.recipe.aggregates import GreedySoup
from lightning_merge.recipe.aligning import align

CANDIDATES = [1e-3, 0.3, 30.0]


def scores_by_hand(context):
    """Held-out accuracy of the average with each candidate, without the machinery."""
    a, b = (context.build(state).eval() for state in context.states)
    loader = context.data.statistics_dataloader()
    spec = PermutationSpec.from_model(a, loader.dataset.tensors[0][:2])
    x, y = context.data.val_dataloader().dataset.tensors
    scores = {}
    for gamma in CANDIDATES:
        aligned = CCAMatching(gamma=gamma).align(spec, a, b, loader)
        merged = context.build(average([context.states[0], aligned]))
        reset_batchnorm(merged, loader)
        with torch.no_grad():
            scores[f"{gamma:g}"] = float((merged.eval()(x).argmax(1) == y).float().mean())
    return scores


def test_the_candidate_with_the_best_held_out_accuracy_is_taken():
    context = made_context(norm=True, data=Points(testable=False))
    found = align(CCAMatching(candidates=CANDIDATES), context)
    expected = scores_by_hand(context)
    assert len(set(expected.values())) > 1
    (choice,) = found.choices
    assert choice.details["scores"] == pytest.approx(expected)
    best = max(expected, key=lambda gamma: (expected[gamma], float(gamma)))
    assert choice.details["gamma"] == float(best)
    assert choice.details["examples"] == 70
    assert choice.details["score"] == "accuracy"
    given = align(CCAMatching(gamma=choice.details["gamma"]), context)
    for name, value in found.states[1].items():
        torch.testing.assert_close(value, given.states[1][name])
    assert given.choices == ()


def test_networks_that_nothing_recalibrates_are_scored_as_they_are():
    context = made_context(norm=False, bias=False)
    (choice,) = align(CCAMatching(candidates=CANDIDATES), context).choices
    assert choice.details["scores"] == pytest.approx(scores_by_hand(context))


def test_each_ingredient_has_its_own_choice_and_the_row_says_them():
    context = made_context(3, norm=True)
    recipe = Recipe("CCA", Average(), CCAMatching(candidates=CANDIDATES), "batchnorm")
    outcome = run_recipe(recipe, context)
    assert [choice["ingredient"] for choice in outcome.choices] == ["network 1", "network 2"]
    assert all(choice["scores"].keys() == {"0.001", "0.3", "30"} for choice in outcome.choices)
    chosen = outcome.measurement.row()["chosen"]
    assert chosen == outcome.measurement.chosen
    assert "70 examples: the validation data of Points" in chosen
    assert outcome.content["lightning_merge"]["choices"] == outcome.choices
    plain = run_recipe(Recipe("mean", Average()), context)
    assert "chosen" not in plain.measurement.row()


def test_without_accuracy_the_loss_decides():
    class Silent(Perceptron):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    context = replace(made_context(norm=True), module=Silent(norm=True))
    (choice,) = align(CCAMatching(candidates=CANDIDATES), context).choices
    assert choice.details["score"] == "-loss"
    assert choice.details["gamma"] == float(
        max(choice.details["scores"], key=choice.details["scores"].__getitem__)
    )
    assert all(score < 0 for score in choice.details["scores"].values())


class Unread(Points):
    """Points whose training part nobody may read."""

    def statistics_dataloader(self):
        pytest.fail("the data were read")


def test_where_nothing_is_held_out_it_says_so_before_observing():
    context = made_context(norm=True, data=Unread(validated=False))
    recipe = Recipe("X", Average(), CCAMatching(), "batchnorm")
    with pytest.raises(ConfigError, match="held out of train, and Unread has none"):
        recipe(context)
    Recipe("X", Average(), CCAMatching(gamma=0.1), "batchnorm").check_context(context)


@pytest.mark.parametrize(
    ("share", "says"), [(0.1, "held out of train"), (0.0, "the official validation split")]
)
def test_it_says_which_examples_they_were(share, says):
    context = made_context(norm=True)
    context.data.held_out = share
    (choice,) = align(CCAMatching(candidates=[0.1]), context).choices
    assert str(choice) == f"gamma 0.1, chosen on 70 examples: {says}"


def test_networks_without_batchnorm_are_chosen_among_after_repair():
    context = made_context()
    (choice,) = align(CCAMatching(candidates=CANDIDATES), context).choices
    gamma = choice.details["gamma"]
    repaired = Recipe("X", Average(), CCAMatching(gamma), "repair")(context).module
    x, y = context.data.val_dataloader().dataset.tensors
    with torch.no_grad():
        accuracy = float((repaired.eval()(x).argmax(1) == y).float().mean())
    assert choice.details["scores"][f"{gamma:g}"] == pytest.approx(accuracy)


@pytest.mark.parametrize("aggregate", [Average(), GreedySoup()])
def test_the_labels_that_it_is_chosen_by_are_counted_once(aggregate):
    recipe = Recipe("CCA", aggregate, CCAMatching(candidates=CANDIDATES), "batchnorm")
    assert recipe(made_context(norm=True)).labelled_examples == 70
