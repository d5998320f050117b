"""BatchNorm statistics that are fresh whenever somebody looks at the weights."""

from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_merge.loaders import statistics_share
from lightning_merge.recalibrate import reset_batchnorm


class BatchNormReset(Callback):
    """Resets BatchNorm statistics on training batches, before validation and before saving.

    In an epoch with validation the reset happens before its first batch, so that what is validated
    and what `ModelCheckpoint` then writes is the reset network, be it the average that Lightning's
    `WeightAveraging` puts in the network's place meanwhile. Where an epoch trains on after
    its validation, or has none, it happens at the end of the training epoch, before
    `ModelCheckpoint` (which Lightning always calls last), and is of the network in training: an
    average that changes after the last validation keeps averaged statistics. The sanity check is
    left alone. Statistics do not enter training, so the weights that are learned are the same with
    and without this callback.

    Training data are read in an order of this callback's own, whatever their loader is, and no
    random number that training draws is another for it. The batches are divided among the ranks,
    each of them whole, and the statistics pooled over all: every rank gets those of a single
    process (relative 1e-5). What cannot be divided, such as an iterable data set, is read by
    each rank as it comes.

    Args:
        every: `epoch`, or `end` for once after the last epoch only.
        limit_batches: How many batches to use, on all ranks together; all if not given.
        augmented: Whether to read images as they are augmented for training, where the data
            module has plain ones, too.
        call: How the module is run where it takes something else than a batch's input, see
            `reset_batchnorm`.
    """

    def __init__(
        self,
        every: Literal["epoch", "end"] = "epoch",
        limit_batches: int | None = None,
        augmented: bool = False,
        call: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.every = every
        self.limit_batches = limit_batches
        self.augmented = augmented
        self.call = call
        self._fresh = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets what was done in another run."""
        del trainer, pl_module
        self._fresh = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes that statistics change, with each batch and not with each step of the optimizer."""
        del trainer, pl_module, batch, batch_idx
        self._fresh = False

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Resets before an epoch's validation, when other callbacks have put their weights in."""
        del args, kwargs
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._reset(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resets where no validation did so since the last batch."""
        self._reset(trainer, pl_module)

    def _reset(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fresh:
            return
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop
        # Lightning does not say that it stops where the steps are those it was to take.
        last = last or 0 <= trainer.max_steps <= trainer.global_step
        if self.every == "end" and not last:
            return
        batches = statistics_share(trainer, self.limit_batches, augmented=self.augmented)
        reset_batchnorm(pl_module, batches, call=self.call)
        self._fresh = True
