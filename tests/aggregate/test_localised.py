"""TALL masks and Consensus against their definition, one number at a time."""

import pytest
import torch

from lightning_merge import consensus, tall_masks, task_arithmetic, task_vector
from lightning_merge.errors import ConfigError


def masks_by_definition(vectors, threshold):
    sums = [sum(column) for column in zip(*vectors, strict=True)]
    return [
        [
            abs(x) >= threshold * abs(total - x) and x != 0
            for x, total in zip(vector, sums, strict=True)
        ]
        for vector in vectors
    ]


def made(values):
    zero = {"w": torch.ones(values.shape[1], dtype=torch.float64)}
    return zero, [{"w": one} for one in values]


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.5])
def test_masks_are_their_definition(threshold):
    # Whole numbers, of which some are exactly at the threshold.
    values = torch.randint(-3, 4, (3, 40)).double()
    start, vectors = made(values)
    expected = masks_by_definition(values.tolist(), threshold)
    found = [mask["w"].tolist() for mask in tall_masks(start, vectors, threshold)]
    assert found == expected
    turned = [mask["w"].tolist() for mask in tall_masks(start, vectors[::-1], threshold)]
    assert turned == expected[::-1]


@pytest.mark.parametrize("agree", [0, 1, 2, 3])
def test_consensus_keeps_what_enough_masks_keep(agree):
    values = torch.randn(3, 40, dtype=torch.float64)
    start, vectors = made(values)
    masks = masks_by_definition(values.tolist(), 0.4)
    counts = [sum(column) for column in zip(*masks, strict=True)]
    expected = [
        1 + 0.3 * float(total) * (count >= agree)
        for total, count in zip(values.sum(0), counts, strict=True)
    ]
    for order in (vectors, vectors[::-1]):
        found = consensus(start, order, 0.3, 0.4, agree)["w"]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert len(set(counts)) > 2


@pytest.mark.parametrize("threshold", [0.0, 0.4, 3.0])
def test_masks_give_back_each_of_several_tasks_that_moved_their_own_entries(threshold):
    start = {"w": torch.randn(6, 4), "b": torch.randn(4)}
    parts = torch.randint(3, (6, 4))
    tuned = [
        {"w": torch.where(parts == k, torch.randn(6, 4), start["w"]), "b": start["b"].clone()}
        for k in range(3)
    ]
    vectors = [task_vector(one, start) for one in tuned]
    merged = task_arithmetic(start, vectors, 1.0)
    for mask, one in zip(tall_masks(start, vectors, threshold), tuned, strict=True):
        for name in start:
            torch.testing.assert_close(
                torch.where(mask[name], merged[name], start[name]), one[name]
            )


def test_statistics_and_counters_have_no_masks():
    start = {
        "w": torch.zeros(2, 2),
        "n.running_var": torch.ones(2),
        "n.num_batches_tracked": torch.tensor(3),
    }
    tuned = [{k: v + 1 + i for k, v in start.items()} for i in range(2)]
    start["tied"] = start["w"]
    for one in tuned:
        one["tied"] = one["w"]
    vectors = [task_vector(one, start) for one in tuned]
    assert [list(mask) for mask in tall_masks(start, vectors)] == [["w", "tied"]] * 2
    merged = consensus(start, vectors, 0.5)
    assert torch.equal(merged["w"], merged["tied"])
    assert merged["n.running_var"].tolist() == [2.5, 2.5]
    assert merged["n.num_batches_tracked"] == 3


def test_numbers_below_zero_are_refused():
    start, vectors = made(torch.ones(2, 3))
    with pytest.raises(ConfigError, match=r"threshold -1"):
        tall_masks(start, vectors, -1)
    with pytest.raises(ConfigError, match=r"-2 of 2 masks"):
        consensus(start, vectors, 1.0, agree=-2)
    with pytest.raises(ConfigError, match="agree"):
        consensus(start, vectors, 1.0, agree=len(vectors) + 2)
