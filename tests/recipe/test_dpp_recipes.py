"""Selection by quality and diversity in front of an aggregate."""

import itertools
from dataclasses import replace

import pytest
import torch
from tiny_contexts import Learner, Points, made_context, trained

from lightning_merge import DPP, Average, NPMerge, Recipe, TaskArithmetic, average
from lightning_merge.errors import ConfigError, SelectionError
from lightning_merge.measure.outcome import run_recipe
from lightning_merge.recipe.aggregates import GreedySoup
from lightning_merge.recipe.held_out import HeldOut


@pytest.fixture(scope="module")
def start():
    return trained(50, steps=3)


@pytest.fixture
def pretrained(start, tmp_path):
    torch.save(start.state_dict(), tmp_path / "pretrained.pt")
    return str(tmp_path / "pretrained.pt")


@pytest.fixture
def context(start):
    # The last one is no better than the start.
    states = [trained(seed, steps=20).state_dict() for seed in range(4)] + [start.state_dict()]
    names = [f"network {index}" for index in range(5)]
    return replace(made_context(2, Points(testable=False)), states=states, names=names)


def right(module):
    module.eval()
    with torch.no_grad():
        return sum(int((module(x).argmax(1) == y).sum()) for x, y in Points().val_dataloader()) / 70


def kernel_by_hand(context, start):
    """L from its definition: relative gains, and cosines of the last hidden layer."""
    base = right(start)
    gains = torch.tensor(
        [(right(context.build(state)) - base) / base for state in context.states],
        dtype=torch.float64,
    ).clamp(min=0)
    q = gains / gains.norm()
    x = Points().val_dataloader().dataset.tensors[0]
    with torch.no_grad():
        hidden = [context.build(state).eval().net[:-1](x).double() for state in context.states]
    S = torch.stack(
        [
            torch.stack([torch.cosine_similarity(a, b, dim=1).nan_to_num().mean() for b in hidden])
            for a in hidden
        ]
    )
    return q[:, None] * S * q[None, :]


def best_subset(L, size):
    def determinant(subset):
        return float(torch.det(L[list(subset)][:, list(subset)]))

    return max(itertools.combinations(range(len(L)), size), key=determinant)


@pytest.mark.parametrize("size", [2, 3])
def test_the_exact_search_is_the_best_subset_by_definition(context, start, pretrained, size):
    expected = best_subset(kernel_by_hand(context, start), size)
    assert 4 not in expected
    recipe = Recipe("picked", Average(), select=DPP(size, pretrained, search="exact"))
    made = recipe(context)
    module, (choice,) = made.module, made.choices
    assert choice.details["ingredients"] == [f"network {index}" for index in expected]
    assert choice.details["among"] == 5
    assert choice.details["examples"] == made.labelled_examples == 70
    for name, value in average([context.states[index] for index in expected]).items():
        torch.testing.assert_close(module.state_dict()[name], value)


def test_the_greedy_order_begins_with_the_best_and_leaves_out_who_is_no_better(
    context, start, pretrained
):
    L = kernel_by_hand(context, start)
    first = int(L.diagonal().argmax())
    second = max(
        (index for index in range(4) if index != first),
        key=lambda index: float(torch.det(L[[first, index]][:, [first, index]])),
    )
    (choice,) = Recipe("two", Average(), select=DPP(2, pretrained))(context).choices
    assert choice.details["ingredients"] == [f"network {first}", f"network {second}"]
    assert "network 4" not in choice.details["details"]["greedy_order"]
    assert choice.details["details"]["quality"]["network 4"] == 0


def test_the_number_is_chosen_on_held_out_data_along_the_greedy_order(context, pretrained):
    recipe = Recipe("any", Average(), select=DPP(None, pretrained))
    made = recipe(context)
    (choice,) = made.choices
    order = [int(name.split()[1]) for name in choice.details["details"]["greedy_order"]]
    scores = {
        size: right(context.build(average([context.states[index] for index in order[:size]])))
        for size in range(2, len(order) + 1)
    }
    assert choice.details["scores"] == pytest.approx(
        {str(size): value for size, value in scores.items()}
    )
    best = max(scores, key=scores.get)
    assert choice.details["ingredients"] == [f"network {index}" for index in order[:best]]
    assert right(made.module) == pytest.approx(scores[best])


def test_a_draw_is_the_same_for_the_same_seed(context, pretrained):
    chosen = []
    for seed in (3, 3, 4, 5, 6, 7):
        recipe = Recipe("drawn", Average(), select=DPP(2, pretrained, search="sample"))
        chosen.append(tuple(recipe(replace(context, seed=seed)).choices[0].details["ingredients"]))
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1


def test_aggregates_that_search_do_so_among_the_selected(context, pretrained):
    made = Recipe("vectors", TaskArithmetic(pretrained), select=DPP(2, pretrained))(context)
    selection, scale = made.choices
    assert len(selection.details["ingredients"]) == 2
    assert scale.details["scores"]
    assert made.labelled_examples == 70
    made = Recipe("soup", GreedySoup(), select=DPP(3, pretrained))(context)
    selection, soup = made.choices
    assert {line["ingredient"] for line in soup.details["trace"]} == set(
        selection.details["ingredients"]
    )


def test_the_result_tells_of_it(context, pretrained):
    context = replace(context, data=Points())
    outcome = run_recipe(Recipe("two", Average(), select=DPP(2, pretrained)), context)
    assert outcome.measurement.chosen.startswith("2 of 5 ingredients (network ")
    assert outcome.measurement.chosen.endswith("chosen by DPP on 70 validation examples")
    assert outcome.content["lightning_merge"]["choices"][0]["by"] == "DPP"
    assert outcome.measurement.train_examples == 70


def test_what_cannot_be_selected_is_refused(context, start, pretrained):
    with pytest.raises(ConfigError, match="2 ingredients or more"):
        DPP(1)
    with pytest.raises(ConfigError, match="needs a size"):
        DPP(search="exact")
    with pytest.raises(ConfigError, match="there are 5 ingredients"):
        Recipe("six", Average(), select=DPP(6, pretrained)).check_context(context)
    with pytest.raises(ConfigError, match="`pretrained`"):
        Recipe("none", Average(), select=DPP(2)).check_context(context)
    with pytest.raises(ConfigError, match="give one of the two"):
        Recipe("weighted", Average([1, 2]), select=DPP(2, pretrained)).check_context(context)
    copies = replace(context, states=[start.state_dict()] * 5)
    with pytest.raises(SelectionError, match="of 5 ingredients none can be used"):
        Recipe("none", Average(), select=DPP(2, pretrained))(copies)


def test_a_gain_over_nothing_is_no_gain(context, pretrained, monkeypatch):
    monkeypatch.setattr(HeldOut, "own_score", lambda *_: 0.0)
    with pytest.raises(SelectionError, match="gets nothing right of network 0"):
        Recipe("none", Average(), select=DPP(2, pretrained))(context)


@pytest.mark.parametrize("rates", [None, [0.001, 0.002]])
def test_labels_that_selection_and_training_both_read_are_counted_once(context, pretrained, rates):
    learner = NPMerge("model", max_epochs=1, learning_rates=rates)
    context = replace(context, module=Learner())
    made = Recipe("both", learner, select=DPP(2, pretrained))(context)
    assert made.labelled_examples == 96 + 70
