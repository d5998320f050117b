"""What two ranks do that are a population: in a file of its own, as a fork imports it anew."""

import os

import torch
from strangers import quiet_trainer
from tiny_contexts import Perceptron
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.callbacks import PopulationAverage

STEPS = 4


class Member(Perceptron):
    """Trained by plain gradient descent."""

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def member():
    torch.manual_seed(0)
    return Member(norm=True)


def part(rank):
    """The batches of a member."""
    drawn = torch.Generator().manual_seed(rank)
    x = torch.randn(STEPS * 8, 6, generator=drawn)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8)


def main(folder):
    rank = int(os.environ["RANK"])
    for rate in (0.0, 0.25):
        module = member()
        callback = PopulationAverage(2, rate, dirpath=folder / f"{rate}")
        trainer = quiet_trainer(
            max_epochs=1,
            strategy="ddp",
            devices=2,
            use_distributed_sampler=False,
            callbacks=[callback],
        )
        trainer.fit(module, part(rank))
        assert callback.meetings == 2
