"""Loaders over other examples fetch and collate as the loader that they are made from."""

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
)

from lightning_merge.batches import classes_of
from lightning_merge.errors import ConfigError
from lightning_merge.modes import evaluation
from lightning_merge.reloading import afresh, reloaded


def doubled(items):
    return 2 * torch.stack([item[0] for item in items])


def loader(**settings):
    data = TensorDataset(torch.arange(10))
    return DataLoader(data, **{"batch_size": 4, "collate_fn": doubled, **settings})


def test_the_same_loader_over_a_subset():
    found = reloaded(loader(), indices=torch.tensor([7, 1, 3, 0, 9]))
    assert [batch.tolist() for batch in found] == [[14, 2, 6, 0], [18]]
    assert [len(batch) for batch in reloaded(loader(), batch_size=3)] == [3, 3, 3, 1]
    assert len(list(reloaded(loader(drop_last=True)))) == 2
    assert len(list(reloaded(loader(), drop_last=True))) == 2
    assert len(list(reloaded(loader(drop_last=True), drop_last=False))) == 3


def test_a_seed_draws_a_new_order_in_every_pass_and_nothing_else():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    orders = []
    for _ in range(2):
        found = reloaded(loader(), shuffle_seed=5)
        orders.append([torch.cat(list(found)).tolist() for _ in range(2)])
    assert torch.equal(torch.get_rng_state(), state)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]
    assert sorted(orders[0][0]) == sorted(orders[0][1]) == list(range(0, 20, 2))


def test_workers_are_set_up_as_before():
    made = loader(num_workers=1, prefetch_factor=3, timeout=20, worker_init_fn=print)
    made = reloaded(made, indices=[1])
    assert (made.num_workers, made.prefetch_factor, made.timeout) == (1, 3, 20)
    assert made.worker_init_fn is print


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(5))


def test_what_has_no_indices_or_no_batch_size_is_refused():
    with pytest.raises(ConfigError, match="makes no batches"):
        reloaded(loader(batch_size=None), batch_size=2)
    with pytest.raises(ConfigError, match="Stream has no indices"):
        reloaded(DataLoader(Stream()))
    own = DataLoader(TensorDataset(torch.arange(4)), batch_sampler=[[0, 1], [2, 3]])
    with pytest.raises(ConfigError, match="give a batch_size"):
        reloaded(own)
    assert len(reloaded(own, batch_size=4)) == 1


def test_a_pass_within_a_pass_does_not_disturb_persistent_workers():
    own = DataLoader(
        TensorDataset(torch.arange(6)),
        batch_sampler=[[0, 1], [2, 3], [4, 5]],
        num_workers=1,
        persistent_workers=True,
    )
    outer = iter(own)
    first = next(outer)[0].tolist()
    assert [batch[0].tolist() for batch in afresh(own)] == [[0, 1], [2, 3], [4, 5]]
    assert [first, *(batch[0].tolist() for batch in outer)] == [[0, 1], [2, 3], [4, 5]]


def test_evaluation_puts_every_mode_back_after_an_error_too():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    model[1].eval()
    other = nn.Linear(2, 2)
    modes = [layer.training for layer in (*model.modules(), other)]

    def fails():
        with evaluation(model, other):
            assert not any(layer.training for layer in (*model.modules(), other))
            raise OSError("x")

    with pytest.raises(OSError, match="x"):
        fails()
    assert [layer.training for layer in (*model.modules(), other)] == modes


def test_classes_of_a_batch():
    classes = torch.tensor([1, 2])
    x = torch.ones(2, 3)
    for batch in ((x, classes), [x, classes, 0], {"x": x, "y": classes}, {"labels": classes}):
        assert classes_of(batch) is classes
    for batch in (x, (x,), (x, classes.float()), (x, x.long()), {"x": x}, (x, "name")):
        assert classes_of(batch) is None


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_batch_sampler_says_whether_its_last_batch_is_dropped(drop_last):
    sampler = BatchSampler(SequentialSampler(range(10)), 4, drop_last)
    loader = DataLoader(TensorDataset(torch.arange(10)), batch_sampler=sampler)
    sizes = [len(batch[0]) for batch in reloaded(loader)]
    assert sizes == ([4, 4] if drop_last else [4, 4, 2])
