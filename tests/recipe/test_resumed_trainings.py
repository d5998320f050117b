"""A training that is stopped after any epoch ends with the bits of one that is not."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from strangers import quiet_trainer
from tiny_contexts import Learner, Points
from torch import nn
from torch.utils.data import DataLoader

from lightning_merge.callbacks.epoch_checkpoint import EpochCheckpoint
from lightning_merge.recipe.fitting import fit, fit_resumably

EPOCHS = 4


class StoppedError(Exception):
    """In the place of a kill."""


class StopIn(Callback):
    """Stops a training in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise StoppedError


class Noisy(Learner):
    """A network whose training draws from every generator, with a schedule of epochs or steps."""

    def __init__(self, interval):
        super().__init__(norm=True)
        self.net.append(nn.Dropout(0.2))
        self.interval = interval

    def training_step(self, batch, batch_idx):
        noise = random.random() + np.random.standard_normal()  # noqa: NPY002
        return super().training_step([batch[0] + 0.1 * noise, batch[1]], batch_idx)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.interval == "step":
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=EPOCHS * 3)
        else:
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return [optimizer], [{"scheduler": schedule, "interval": self.interval}]


class Workers(Points):
    """Points that processes of their own read ahead."""

    def train_dataloader(self):
        data = super().train_dataloader().dataset
        return DataLoader(data, batch_size=32, shuffle=True, num_workers=1)


@pytest.fixture
def every_epoch(monkeypatch):
    monkeypatch.setattr(EpochCheckpoint, "every", 0.0)
    monkeypatch.setattr(EpochCheckpoint, "share", float("inf"))


def begin(interval):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    return Noisy(interval)


@pytest.mark.parametrize(
    ("interval", "data", "stops"),
    [("epoch", Points, (1, 3)), ("step", Points, (0, 2)), ("step", Workers, (2,))],
)
def test_a_stopped_training_ends_with_the_same_bits(every_epoch, tmp_path, interval, data, stops):
    whole = begin(interval)
    examples = fit(whole, data(), quiet_trainer(max_epochs=EPOCHS))
    kept = tmp_path / "training.ckpt"
    for epoch in stops:
        module = begin(interval)
        trainer = quiet_trainer(max_epochs=EPOCHS)
        trainer.callbacks.append(StopIn(epoch))
        with pytest.raises(StoppedError):
            fit_resumably(module, data(), trainer, kept)
        assert kept.exists() == (epoch > 0)
    module = begin(interval)
    trainer = quiet_trainer(max_epochs=EPOCHS)
    begun = []
    trainer.callbacks.append(Begun(begun))
    fitted = fit_resumably(module, data(), trainer, kept)
    # It did not start anew.
    assert begun == list(range(stops[-1], EPOCHS))
    assert fitted.examples == examples == 96
    assert fitted.seconds > 0
    for name, value in whole.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


class Begun(Callback):
    """Notes the epochs that begin."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append(trainer.current_epoch)


def test_a_training_that_had_ended_is_not_trained_on(every_epoch, tmp_path):
    kept = tmp_path / "training.ckpt"
    module = begin("epoch")
    fit_resumably(module, Points(), quiet_trainer(max_epochs=EPOCHS), kept)
    again = begin("epoch")
    fitted = fit_resumably(again, Points(), quiet_trainer(max_epochs=EPOCHS), kept)
    assert fitted.examples == 96
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("harm", [lambda raw: raw[:1000], lambda raw: b"", "flip"])
def test_a_damaged_state_is_left_aside(every_epoch, tmp_path, harm):
    kept = tmp_path / "training.ckpt"
    whole = begin("epoch")
    fit_resumably(whole, Points(), quiet_trainer(max_epochs=EPOCHS), kept)
    raw = kept.read_bytes()
    if harm == "flip":
        # In the storage of a tensor: not in the list of what the file holds.
        weight = whole.state_dict()["net.0.weight"].numpy().tobytes()
        at = raw.index(weight) + 5
        kept.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    else:
        kept.write_bytes(harm(raw))
    assert EpochCheckpoint(kept).found() is None
    module = begin("epoch")
    fit_resumably(module, Points(), quiet_trainer(max_epochs=EPOCHS), kept)
    for name, value in whole.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
