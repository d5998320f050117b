"""The order in which statistics read a loader: at random, each example once, on all ranks."""

import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from lightning_merge import orders
from lightning_merge.errors import ConfigError
from lightning_merge.orders import in_random_order, share_of


def numbers(count=33):
    return TensorDataset(torch.arange(count), torch.arange(count) // 8)


def read(batches):
    return [batch[0].tolist() for batch in batches]


def flat(batches):
    return [number for batch in read(batches) for number in batch]


class NamedBatches(BatchSampler):
    """As torch's, under another name."""


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"drop_last": True},
        {"shuffle": True},
        {"batch_sampler": NamedBatches(range(33), 16, False)},
        {"sampler": DistributedSampler(numbers(), 2, 1)},
        {"sampler": DistributedSamplerWrapper(SequentialSampler(numbers()), 2, 0)},
    ],
)
def test_every_example_is_read_once_in_a_random_order(settings):
    if "batch_sampler" not in settings:
        settings = {"batch_size": 16, **settings}
    loader = DataLoader(numbers(), **settings)
    drawn = in_random_order(loader, seed=3)
    batches = read(drawn)
    # No batch of one.
    assert sorted(len(batch) for batch in batches) == [16, 17]
    assert sorted(flat(drawn)) == list(range(33))
    assert flat(drawn) != list(range(33))
    assert batches == read(drawn) == read(in_random_order(loader, seed=3))
    assert batches != read(in_random_order(loader, seed=4))
    assert in_random_order(drawn, seed=5) is drawn


@pytest.mark.parametrize("examples", [7, 33, 100])
def test_fewer_examples_are_drawn_at_random_and_not_sorted(examples):
    found = flat(in_random_order(DataLoader(numbers(), 16), examples=examples))
    assert len(set(found)) == len(found) == min(examples, 33)
    assert found != sorted(found)


class Reversed(Sampler):
    """Part of a set, in an order of its own, with numpy's generator."""

    def __init__(self):
        self.draw = np.random.default_rng(3)

    def __len__(self):
        return 20

    def __iter__(self):
        return iter((19 - np.sort(self.draw.permutation(20))).tolist())


@pytest.mark.parametrize("sampler", [SubsetRandomSampler(range(20)), Reversed()])
def test_a_sampler_chooses_the_examples_and_its_generator_does_not_notice(sampler):
    loader = DataLoader(numbers(), 6, sampler=sampler)
    state = sampler.draw.bit_generator.state if isinstance(sampler, Reversed) else None
    torch.manual_seed(1)
    drawn = in_random_order(loader)
    assert sorted(flat(drawn)) == list(range(20))
    after = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(2), after)
    if state is not None:
        assert sampler.draw.bit_generator.state == state


def test_a_sampler_of_some_examples_an_epoch_gives_so_many():
    loader = DataLoader(numbers(), 4, sampler=RandomSampler(numbers(), num_samples=10))
    assert len(set(flat(in_random_order(loader)))) == 10


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.tensor(i), torch.tensor(i // 8)) for i in range(32)])


class Doubling(DataLoader):
    """Changes its batches by itself."""

    def __iter__(self):
        return ([2 * batch[0], batch[1]] for batch in super().__iter__())


class OwnBatches(BatchSampler):
    def __iter__(self):
        return super().__iter__()


@pytest.mark.parametrize(
    ("batches", "wanted"),
    [
        (DataLoader(Stream(), 8), list(range(32))),
        (list(DataLoader(numbers(32), 8)), list(range(32))),
        (Doubling(numbers(32), 8), list(range(0, 64, 2))),
        (
            DataLoader(numbers(32), batch_sampler=OwnBatches(range(32), 8, False)),
            list(range(32)),
        ),
    ],
)
def test_what_cannot_be_drawn_is_read_as_it_comes_with_a_warning(batches, wanted):
    found = in_random_order(batches)
    assert in_random_order(found) is found
    with pytest.warns(UserWarning, match="4 of 4 batches are of one class each") as warned:
        assert flat(found) == wanted
    assert len(warned) == 1
    with pytest.raises(ConfigError, match="5 examples cannot be drawn"):
        in_random_order(batches, examples=5)


@pytest.mark.parametrize(
    "batches",
    [
        [(torch.ones(4), torch.zeros(4, dtype=torch.long))] * 3,
        [(torch.ones(4), torch.arange(4))] * 3,
        [{"image": torch.ones(1), "label": torch.tensor([i])} for i in range(9)],
        [(torch.ones(4), torch.eye(4))] * 3,
        [torch.ones(4)] * 3,
    ],
)
def test_no_warning_where_nothing_is_sorted(batches):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(in_random_order(batches))) == len(batches)


@pytest.mark.parametrize(
    "batch",
    [
        lambda i: {"x": torch.ones(4), "target": torch.full((4,), i)},
        lambda i: {"image": torch.ones(4), "class": torch.full((4,), i)},
        lambda i: (torch.ones(4), torch.full((4, 1), float(i))),
        lambda i: (torch.ones(4), torch.eye(3)[[i] * 4]),
        lambda i: (torch.ones(4), {"label": torch.full((4,), i)}),
        lambda i: [torch.ones(4), [i] * 4],
    ],
)
def test_sorted_labels_of_any_form_give_a_warning(batch):
    batches = [batch(i) for i in range(3)]
    with pytest.warns(UserWarning, match="3 of 3"):
        list(in_random_order(batches))


def shares(monkeypatch, loader, count, limit=None):
    found = []
    for rank in range(count):
        monkeypatch.setattr(orders, "ranks", lambda rank=rank: (rank, count))
        found.append(share_of(loader, limit, seed=2))
    return found


@pytest.mark.parametrize("count", [1, 2, 3])
def test_ranks_divide_one_random_order(monkeypatch, count):
    loader = DataLoader(numbers(), 8, shuffle=True)
    found = shares(monkeypatch, loader, count)
    assert sorted(number for share in found for number in flat(share)) == list(range(33))
    alone = read(in_random_order(loader, seed=2))
    assert [read(share) for share in found] == [alone[rank::count] for rank in range(count)]
    assert {share.copies for share in found} == {1}


def test_what_cannot_be_divided_is_read_by_all(monkeypatch):
    few = DataLoader(numbers(), 20)
    found = shares(monkeypatch, few, 3)
    assert all(Counter(flat(share)) == Counter(range(33)) for share in found)
    assert {share.copies for share in found} == {3}
    assert [len(share) for share in shares(monkeypatch, few, 2, limit=1)] == [1, 1]
    given = [(torch.ones(2),)] * 4
    assert [len(list(share)) for share in shares(monkeypatch, given, 2, limit=3)] == [3, 3]


def test_each_rank_s_own_part_of_a_set_counts(monkeypatch):
    """Samplers that divide by themselves, or that draw differently on every rank."""
    loader = DataLoader(numbers(20), 5, sampler=SubsetRandomSampler(range(10)))
    monkeypatch.setattr(orders, "gather_over_ranks", lambda own: [own, [n + 10 for n in own]])
    assert sorted(flat(in_random_order(loader))) == list(range(20))
    monkeypatch.setattr(orders, "gather_over_ranks", lambda own: [own[::-1], own])
    assert sorted(flat(in_random_order(loader))) == list(range(10))
