"""A training that was killed goes on from its last epoch, and ends with the same weights."""

import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_merge.checkpoint import write_checkpoint
from lightning_merge.randomness import random_state, set_random_state


class EpochCheckpoint(Callback):
    """Keeps a training's whole state at the ends of epochs, and goes on from it.

    To the weights, the optimizer and the schedules, which Lightning stores, it adds the states of
    the random number generators, so that the order of the batches and all augmentation go on as
    they would have.

    The caller removes the file when what the training made is safe elsewhere; `seconds` says how
    long the training took before it was last killed.
    """

    # Seconds from one writing to the next, at least: shorter epochs cost less to train again.
    every = 2.0
    # The most that writing may take of the time.
    share = 0.05

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds, self._pause = 0.0, self.every
        self._began = self._written = time.monotonic()
        self._generators: dict[str, Any] | None = None

    def found(self) -> Path | None:
        """The file, if it is there and whole."""
        try:
            with zipfile.ZipFile(self.path) as parts:
                # torch reads a changed byte without a word.
                whole = parts.testzip() is None
            torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:
            # Missing, cut off, or with a callback's state that is more than plain values.
            return None
        return self.path if whole else None

    def state_dict(self) -> dict[str, Any]:
        """The generators' states and the seconds so far."""
        seconds = self.seconds + time.monotonic() - self._began
        return {"generators": random_state(), "seconds": seconds}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self._generators, self.seconds = state_dict["generators"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        del trainer, pl_module
        self._began = self._written = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the generators in the first epoch of a training that goes on."""
        del pl_module
        if self._generators is not None:
            set_random_state(self._generators)
            self._generators = None
            # Lightning has made this epoch's iterator already, from generators in another state.
            assert trainer.fit_loop._data_fetcher is not None
            iter(trainer.fit_loop._data_fetcher)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file, if the last writing is long enough ago."""
        del pl_module
        start = time.monotonic()
        if start - self._written < self._pause:
            return
        content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        write_checkpoint(self.path, content)
        self._written = time.monotonic()
        self._pause = max(self.every, (self._written - start) / self.share)
