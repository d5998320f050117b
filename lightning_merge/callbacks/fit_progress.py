"""One line of progress for a whole fit, where many fits follow each other."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class FitProgress(Callback):
    """Shows the epoch and the last metrics of a fit in one line, gone when it ends.

    Args:
        description: What the line is headed with; the module's class if not given.
    """

    def __init__(self, description: str | None = None) -> None:
        self.description = description
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the line."""
        console = Console(stderr=True)
        if not (trainer.is_global_zero and console.is_terminal):
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.fields[epoch]}"),
            TimeRemainingColumn(),
            transient=True,
            console=console,
        )
        steps = float(trainer.estimated_stepping_batches)
        self._task = self._progress.add_task(
            self.description or f"Training {escape(type(pl_module).__name__)}",
            # Infinite where only time ends the fit, or nobody knows how long an epoch is.
            total=None if math.isinf(steps) else steps,
            epoch="1",
        )
        self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Moves on by a batch."""
        del pl_module, args, kwargs
        if self._progress is not None:
            last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
            epoch = f"{trainer.current_epoch + 1}{last}"
            self._progress.update(self._task, completed=trainer.global_step, epoch=epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the line."""
        del trainer, pl_module
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Closes the line, so that the message after it can be read."""
        del trainer, pl_module, exception
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
