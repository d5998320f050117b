"""CCA's gamma is chosen on validation data, and the result says so."""

import pytest
import torch
from tiny_pools import Perceptron, Points, made_pool
from torch import nn

from lightning_merge.aggregate import average
from lightning_merge.align import CCAMatching, PermutationSpec
from lightning_merge.errors import ConfigError
from lightning_merge.measure.outcome import run_recipe
from lightning_merge.recalibrate import reset_batchnorm
from lightning_merge.recipe.aggregates import Average
from lightning_merge.recipe.recipe import Recipe

CANDIDATES = [1e-3, 0.3, 30.0]


def scores_by_hand(pool):
    """Held-out accuracy of the average with each candidate, without the machinery."""
    a, b = (pool.build(state).eval() for state in pool.states)
    loader = pool.data.statistics_dataloader()
    spec = PermutationSpec.from_model(a, loader.dataset.tensors[0][:2])
    x, y = pool.data.val_dataloader().dataset.tensors
    scores = {}
    for gamma in CANDIDATES:
        aligned = CCAMatching(gamma=gamma).align(spec, a, b, loader)
        merged = pool.build(average([pool.states[0], aligned]))
        reset_batchnorm(merged, loader)
        with torch.no_grad():
            scores[f"{gamma:g}"] = float((merged.eval()(x).argmax(1) == y).float().mean())
    return scores


def test_the_candidate_with_the_best_held_out_accuracy_is_taken():
    pool = made_pool(norm=True, data=Points(testable=False))
    matching = CCAMatching(candidates=CANDIDATES)
    states, _ = pool.align(matching)
    expected = scores_by_hand(pool)
    assert len(set(expected.values())) > 1
    (choice,) = pool.choices(matching)
    assert choice.scores == pytest.approx(expected)
    best = max(expected, key=lambda gamma: (expected[gamma], float(gamma)))
    assert choice.gamma == float(best)
    assert choice.examples == 70
    assert choice.score == "accuracy"
    given, _ = pool.align(CCAMatching(gamma=choice.gamma))
    for name, value in states[1].items():
        torch.testing.assert_close(value, given[1][name])
    assert pool.choices(CCAMatching(gamma=0.1)) == []


def test_each_ingredient_has_its_own_choice_and_the_row_says_them():
    pool = made_pool(3, norm=True)
    recipe = Recipe("CCA", Average(), CCAMatching(candidates=CANDIDATES), "batchnorm")
    outcome = run_recipe(recipe, pool)
    assert [choice["ingredient"] for choice in outcome.choices] == ["network 1", "network 2"]
    assert all(choice["scores"].keys() == {"0.001", "0.3", "30"} for choice in outcome.choices)
    assert outcome.row()["chosen"] == outcome.chosen
    assert "70 examples: the validation data of Points" in outcome.chosen
    assert outcome.content["lightning_merge"]["choices"] == outcome.choices
    plain = run_recipe(Recipe("mean", Average()), pool)
    assert "chosen" not in plain.row()


def test_without_accuracy_the_loss_decides():
    class Silent(Perceptron):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    pool = made_pool(norm=True)
    pool.module = Silent(norm=True)
    matching = CCAMatching(candidates=CANDIDATES)
    (choice,) = pool.choices(matching)
    assert choice.score == "-loss"
    assert choice.gamma == float(max(choice.scores, key=choice.scores.__getitem__))
    assert all(score < 0 for score in choice.scores.values())


def test_where_nothing_is_held_out_it_says_so_before_observing():
    pool = made_pool(norm=True, data=Points(validated=False))
    pool.statistics = lambda: pytest.fail("the data were read")
    recipe = Recipe("X", Average(), CCAMatching(), "batchnorm")
    with pytest.raises(ConfigError, match="held out of train, and Points has none"):
        recipe(pool)
    Recipe("X", Average(), CCAMatching(gamma=0.1), "batchnorm").check_pool(pool)


@pytest.mark.parametrize(
    ("share", "says"), [(0.1, "held out of train"), (0.0, "the official validation split")]
)
def test_it_says_which_examples_they_were(share, says):
    pool = made_pool(norm=True)
    pool.data.held_out = share
    (choice,) = pool.choices(CCAMatching(candidates=[0.1]))
    assert str(choice) == f"gamma 0.1, chosen on 70 examples: {says}"


def test_networks_without_batchnorm_are_chosen_among_after_repair():
    pool = made_pool()
    (choice,) = pool.choices(CCAMatching(candidates=CANDIDATES))
    repaired = Recipe("X", Average(), CCAMatching(gamma=choice.gamma), "repair")(pool)[0]
    x, y = pool.data.val_dataloader().dataset.tensors
    with torch.no_grad():
        accuracy = float((repaired.eval()(x).argmax(1) == y).float().mean())
    assert choice.scores[f"{choice.gamma:g}"] == pytest.approx(accuracy)
