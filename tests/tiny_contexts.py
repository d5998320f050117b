"""Contexts of tiny networks on made points, with and without BatchNorm."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from strangers import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.recipe.context import Context

CLASSES = 3


class Points(LightningDataModule):
    """Points whose sign pattern tells the class; each part has its own."""

    def __init__(self, validated: bool = True, testable: bool = True) -> None:
        super().__init__()
        self.validated, self.testable = validated, testable

    def _points(self, seed: int, count: int, shuffle: bool = False):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, 6, generator=generator)
        y = (x[:, :CLASSES] + 0.3 * x[:, CLASSES:]).argmax(1)
        return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=shuffle)

    def train_dataloader(self):
        return self._points(1, 96, shuffle=True)

    def statistics_dataloader(self):
        return self._points(1, 96)

    def val_dataloader(self):
        return self._points(2, 70) if self.validated else []

    def test_dataloader(self):
        assert self.testable, "the test set was looked at"
        return self._points(3, 80)


class Perceptron(LightningModule):
    """Two hidden layers, with a norm behind each or with none."""

    def __init__(self, norm: bool = False, bias: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (6, 12):
            layers.append(nn.Linear(inputs, 12, bias=bias))
            layers += [nn.BatchNorm1d(12)] if norm else []
            layers.append(nn.ReLU())
        self.net = nn.Sequential(*layers, nn.Linear(12, CLASSES))

    def forward(self, x):
        return self.net(x)

    def _log(self, batch, part):
        logits = self(batch[0])
        self.log(f"{part}_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log(f"{part}_acc", (logits.argmax(1) == batch[1]).float().mean())

    def validation_step(self, batch, batch_idx):
        self._log(batch, "val")

    def test_step(self, batch, batch_idx):
        self._log(batch, "test")


def trained(seed: int, steps: int = 60, **options: bool) -> Perceptron:
    """A network that has learned the points."""
    torch.manual_seed(seed)
    module = Perceptron(**options)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    x, y = Points().statistics_dataloader().dataset.tensors
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module.eval()


def made_context(count: int = 2, data: LightningDataModule | None = None, **options) -> Context:
    """A context of so many; `options` are those of the network, or of the context."""
    network = {name: options.pop(name) for name in ("norm", "bias") if name in options}
    return Context(
        Perceptron(**network),
        [trained(seed, **network).state_dict() for seed in range(count)],
        [f"network {index}" for index in range(count)],
        data or Points(),
        quiet_trainer,
        progress=False,
        **options,
    )


class Learner(Perceptron):
    """A network that a study can train."""

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def learners(count: int) -> list[Learner]:
    """So many of them that have learned the points."""
    made = []
    for seed in range(count):
        made.append(Learner())
        made[-1].load_state_dict(trained(seed).state_dict())
    return made
