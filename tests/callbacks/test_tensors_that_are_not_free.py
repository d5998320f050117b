"""Callbacks that average weights, and tensors that have no mean of their own."""

import math

import pytest
import torch
from lightning.pytorch import LightningModule
from strangers import quiet_trainer
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.callbacks import (
    GreedySoup,
    InModelMerging,
    LastEpochsSoup,
    Population,
    PopulationAverage,
)
from lightning_merge.errors import CheckpointError, ConfigError

IMAGES = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(1))


class Plain(LightningModule):
    def __init__(self, change=lambda net: net, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 1))
        change(self.net)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val", self.net(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data():
    return DataLoader(TensorDataset(IMAGES), batch_size=4)


NOT_FREE = {
    "spectral norm": lambda net: parametrizations.spectral_norm(net[0]),
    "weight norm": lambda net: parametrizations.weight_norm(net[2]),
    "orthogonal": lambda net: parametrizations.orthogonal(net[2]),
    "old spectral norm": lambda net: nn.utils.spectral_norm(net[0]),
}


@pytest.mark.parametrize("change", NOT_FREE.values(), ids=NOT_FREE)
@pytest.mark.parametrize(
    "callback", [LastEpochsSoup, lambda: GreedySoup("val"), lambda: PopulationAverage(1, 0.5)]
)
def test_they_are_refused_before_anything_is_trained(callback, change, tmp_path):
    module = Plain(change)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback()], default_root_dir=tmp_path)
    with pytest.raises(CheckpointError, match="call torch"):
        trainer.fit(module, data(), data())
    assert trainer.global_step == 0
    assert all(torch.equal(before[name], module.state_dict()[name]) for name in before)


@pytest.mark.parametrize(
    "change", [*NOT_FREE.values(), lambda net: prune.l1_unstructured(net[2], "weight", 0.5)]
)
def test_kernels_that_are_computed_are_not_merged_in_vain(change):
    callback = InModelMerging(1.0, -1.0, skip=0)
    with pytest.raises(ConfigError, match="computes its weight"):
        quiet_trainer(max_epochs=1, callbacks=[callback]).fit(Plain(change), data())


class Odd(Plain):
    """Has a mask of infinities, a complex parameter and buffer, and a counter."""

    def __init__(self, seed):
        super().__init__(seed=seed)
        self.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
        self.register_buffer("unsaved", torch.full((2,), math.inf), persistent=False)
        self.wave = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.register_buffer("tone", torch.randn(2, dtype=torch.complex64))
        self.register_buffer("steps", torch.tensor([seed, 7]))
        prune.random_unstructured(self.net[2], "weight", 0.5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[0].parameters(), lr=0.0)


def test_members_meet_at_the_mean_of_whatever_they_have():
    members, population = [Odd(1), Odd(2)], Population()
    before = [
        {k: v.clone() for k, v in (*one.named_parameters(), *one.named_buffers())}
        for one in members
    ]

    def fit(module):
        callbacks = [PopulationAverage(2, 0.25, population)]
        quiet_trainer(max_epochs=1, callbacks=callbacks).fit(module, data())

    population.train([lambda m=module: fit(m) for module in members])
    for own, module in zip(before, members, strict=True):
        after = dict([*module.named_parameters(), *module.named_buffers()])
        for name, value in own.items():
            if name in ("steps", "mask", "unsaved", "net.2.weight_mask"):
                assert torch.equal(after[name], value)
            else:
                wanted = 0.75 * value + 0.25 * (before[0][name] + before[1][name]) / 2
                torch.testing.assert_close(after[name].detach(), wanted)
                assert not torch.allclose(after[name], value)
