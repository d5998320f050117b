"""BatchNorm statistics that are fresh whenever somebody looks at the weights."""

from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_merge.loaders import statistics_share
from lightning_merge.recalibrate import reset_batchnorm


class BatchNormReset(Callback):
    """Resets BatchNorm statistics on training batches, before validation and before saving.

    In an epoch with validation the reset happens at its start, so that what is validated
    and what `ModelCheckpoint` then writes is the reset network. Without validation it
    happens at the end of the training epoch, before `ModelCheckpoint` (which Lightning
    always calls last). The sanity check is left alone. Statistics do not enter training,
    so the weights that are learned are the same with and without this callback.

    The batches are divided among the ranks, each of them whole, and the statistics averaged over
    all: every rank holds those of a single process (relative 1e-5). Training batches that come
    in an order of their own (`statistics_dataloader` with a sampler) are all read by each rank.

    Args:
        every: `epoch`, or `end` for once after the last epoch only.
        limit_batches: How many batches to use, on all ranks together; all if not given.
    """

    def __init__(
        self, every: Literal["epoch", "end"] = "epoch", limit_batches: int | None = None
    ) -> None:
        self.every = every
        self.limit_batches = limit_batches
        self._reset_in: int | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resets before an epoch's validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._reset(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resets where no validation did so in this epoch."""
        if self._reset_in != trainer.current_epoch:
            self._reset(trainer, pl_module)

    def _reset(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop
        if self.every == "end" and not last:
            return
        # Loaders draw random numbers; training must not notice.
        with isolate_rng():
            reset_batchnorm(pl_module, statistics_share(trainer, self.limit_batches))
        self._reset_in = trainer.current_epoch
