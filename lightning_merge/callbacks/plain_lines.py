"""A line for each epoch, for logs that are no terminal."""

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_merge.callbacks.alpha_monitor import PREFIX
from lightning_merge.durations import in_seconds


class PlainLines(Callback):
    """Prints a line with the metrics when an epoch ends, instead of a bar that moves."""

    def __init__(self) -> None:
        self._begun = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the clock."""
        del trainer, pl_module
        self._begun = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the line."""
        del pl_module
        last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        seconds = time.monotonic() - self._begun
        # A value for each layer is for loggers: nobody finds the loss among a hundred.
        shown = {k: v for k, v in trainer.callback_metrics.items() if not k.startswith(PREFIX)}
        print_line(
            f"epoch {trainer.current_epoch + 1}{last}: {in_words(shown)} ({in_seconds(seconds)} s)"
        )


def in_words(metrics: Mapping[str, Any]) -> str:
    """Metrics as `name value`, joined by commas."""
    return ", ".join(f"{name} {float(value):.6g}" for name, value in metrics.items())


@rank_zero_only
def print_line(line: str) -> None:
    """Prints a line at once, on the first of several processes only."""
    print(line, flush=True)
