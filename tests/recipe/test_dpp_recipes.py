"""Selection by quality and diversity in front of an aggregate."""

import itertools

import pytest
import torch
from tiny_pools import Points, made_pool, trained

from lightning_merge.aggregate import average
from lightning_merge.errors import ConfigError, SelectionError
from lightning_merge.recipe.aggregates import Average, GreedySoup, TaskArithmetic
from lightning_merge.measure.outcome import run_recipe
from lightning_merge.recipe.held_out import HeldOut
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.recipe.selections import DPP


@pytest.fixture(scope="module")
def start():
    return trained(50, steps=3)


@pytest.fixture
def pretrained(start, tmp_path):
    torch.save(start.state_dict(), tmp_path / "pretrained.pt")
    return str(tmp_path / "pretrained.pt")


@pytest.fixture
def pool(start):
    made = made_pool(2, Points(testable=False))
    # The last one is no better than the start.
    made.states = [trained(seed, steps=20).state_dict() for seed in range(4)]
    made.states.append(start.state_dict())
    made.names = [f"network {index}" for index in range(5)]
    return made


def right(module):
    module.eval()
    with torch.no_grad():
        return sum(int((module(x).argmax(1) == y).sum()) for x, y in Points().val_dataloader()) / 70


def kernel_by_hand(pool, start):
    """L from its definition: relative gains, and cosines of the last hidden layer."""
    base = right(start)
    gains = torch.tensor(
        [(right(pool.build(state)) - base) / base for state in pool.states], dtype=torch.float64
    ).clamp(min=0)
    q = gains / gains.norm()
    x = Points().val_dataloader().dataset.tensors[0]
    with torch.no_grad():
        hidden = [pool.build(state).eval().net[:-1](x).double() for state in pool.states]
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
def test_the_exact_search_is_the_best_subset_by_definition(pool, start, pretrained, size):
    expected = best_subset(kernel_by_hand(pool, start), size)
    assert 4 not in expected
    recipe = Recipe("picked", Average(), select=DPP(size, pretrained, search="exact"))
    module, _ = recipe(pool)
    (choice,) = pool.selected
    assert choice.ingredients == [f"network {index}" for index in expected]
    assert choice.among == 5
    assert choice.examples == pool.learned_from == 70
    for name, value in average([pool.states[index] for index in expected]).items():
        torch.testing.assert_close(module.state_dict()[name], value)


def test_the_greedy_order_begins_with_the_best_and_leaves_out_who_is_no_better(
    pool, start, pretrained
):
    L = kernel_by_hand(pool, start)
    first = int(L.diagonal().argmax())
    second = max(
        (index for index in range(4) if index != first),
        key=lambda index: float(torch.det(L[[first, index]][:, [first, index]])),
    )
    Recipe("two", Average(), select=DPP(2, pretrained))(pool)
    assert pool.selected[0].ingredients == [f"network {first}", f"network {second}"]
    order = pool.selected[0].details["greedy_order"]
    assert "network 4" not in order
    assert pool.selected[0].details["quality"]["network 4"] == 0


def test_the_number_is_chosen_on_held_out_data_along_the_greedy_order(pool, pretrained):
    recipe = Recipe("any", Average(), select=DPP(None, pretrained))
    module, _ = recipe(pool)
    (choice,) = pool.selected
    order = [int(name.split()[1]) for name in choice.details["greedy_order"]]
    scores = {
        size: right(pool.build(average([pool.states[index] for index in order[:size]])))
        for size in range(2, len(order) + 1)
    }
    assert choice.scores == pytest.approx({str(size): value for size, value in scores.items()})
    best = max(scores, key=scores.get)
    assert choice.ingredients == [f"network {index}" for index in order[:best]]
    assert right(module) == pytest.approx(scores[best])


def test_a_draw_is_the_same_for_the_same_seed(pool, pretrained):
    chosen = []
    for seed in (3, 3, 4, 5, 6, 7):
        pool.seed = seed
        Recipe("drawn", Average(), select=DPP(2, pretrained, search="sample"))(pool)
        chosen.append(tuple(pool.selected[0].ingredients))
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1


def test_aggregates_that_search_do_so_among_the_selected(pool, pretrained):
    Recipe("vectors", TaskArithmetic(pretrained), select=DPP(2, pretrained))(pool)
    selection, scale = pool.selected
    assert len(selection.ingredients) == 2
    assert scale.scores
    assert pool.learned_from == 70
    Recipe("soup", GreedySoup(), select=DPP(3, pretrained))(pool)
    selection, soup = pool.selected
    assert {line["ingredient"] for line in soup.trace} == set(selection.ingredients)


def test_the_result_tells_of_it(pool, pretrained):
    pool.data = Points()
    outcome = run_recipe(Recipe("two", Average(), select=DPP(2, pretrained)), pool)
    assert outcome.chosen.startswith("2 of 5 ingredients (network ")
    assert outcome.chosen.endswith("chosen by DPP on 70 validation examples")
    assert outcome.content["lightning_merge"]["choices"][0]["by"] == "DPP"
    assert outcome.measurement.train_examples == 70


def test_what_cannot_be_selected_is_said(pool, start, pretrained):
    with pytest.raises(ConfigError, match="2 ingredients or more"):
        DPP(1)
    with pytest.raises(ConfigError, match="needs a size"):
        DPP(search="exact")
    with pytest.raises(ConfigError, match="there are 5 ingredients"):
        Recipe("six", Average(), select=DPP(6, pretrained)).check_pool(pool)
    with pytest.raises(ConfigError, match="`pretrained`"):
        Recipe("none", Average(), select=DPP(2)).check_pool(pool)
    with pytest.raises(ConfigError, match="give one of the two"):
        Recipe("weighted", Average([1, 2]), select=DPP(2, pretrained)).check_pool(pool)
    pool.states = [start.state_dict()] * 5
    with pytest.raises(SelectionError, match="of 5 ingredients none can be used"):
        Recipe("none", Average(), select=DPP(2, pretrained))(pool)


def test_a_gain_over_nothing_is_no_gain(pool, pretrained, monkeypatch):
    monkeypatch.setattr(HeldOut, "own_score", lambda *_: 0.0)
    with pytest.raises(SelectionError, match="gets nothing right of network 0"):
        Recipe("none", Average(), select=DPP(2, pretrained))(pool)
