"""Batches of data modules for statistics: plain or augmented, in random order."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.errors import ConfigError
from lightning_merge.loaders import (
    few_test_batches,
    ordered_batches_of,
    statistics_batches_of,
)

CPU = torch.device("cpu")


def loader(first, count=20, **settings):
    return DataLoader(TensorDataset(torch.arange(first, first + count)), 8, **settings)


class Data(LightningDataModule):
    def __init__(self, train, plain=None):
        super().__init__()
        self.train = train
        if plain is not None:
            self.statistics_dataloader = lambda: plain

    def train_dataloader(self):
        return self.train

    test_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 1000]


def read(data, make=statistics_batches_of, **settings):
    return [int(x) for batch in make(data, LightningModule(), CPU, **settings) for x in batch[0]]


def numbers(first, count=20):
    return list(range(1000 + first, 1000 + first + count))


def test_plain_images_where_there_are_any_in_random_order():
    data = Data(loader(0, shuffle=True), loader(100))
    assert sorted(read(data)) == numbers(100)
    assert sorted(read(data, augmented=True)) == sorted(read(Data(loader(0)))) == numbers(0)
    assert read(data) == read(data, seed=0) != read(data, seed=1)
    assert read(data) != numbers(100)
    assert read(data, ordered_batches_of) == numbers(100)


def test_fewer_examples():
    found = read(Data(loader(0)), examples=9)
    assert len(set(found)) == 9
    assert found != sorted(found)
    assert set(found) < set(numbers(0))
    assert len(read(Data([loader(0)]), few_test_batches, examples=5)) == 5
    with pytest.raises(ConfigError, match="5 examples cannot be drawn from a list"):
        read(Data([loader(0), loader(5)]), few_test_batches, examples=5)


@pytest.mark.parametrize(
    "collect", [lambda *a: list(a), lambda *a: dict(zip("ab", a, strict=True))]
)
def test_several_loaders_are_read_one_after_the_other(collect):
    found = read(Data(collect(loader(0), loader(100, 12))))
    assert sorted(found[:20]) == numbers(0)
    assert sorted(found[20:]) == numbers(100, 12)
    assert found[:20] != numbers(0)


def test_a_list_of_batches_is_read_as_it_comes():
    batches = [[torch.arange(4)], [torch.arange(4, 6)]]
    assert read(Data(batches)) == numbers(0, 6)
