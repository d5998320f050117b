"""Fitting a module for a merge or a study: quietly, and counting what it learned from."""

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from lightning_merge.batches import inputs_of
from lightning_merge.callbacks.first_batch import FirstBatch


def fit(module: LightningModule, data: LightningDataModule, trainer: Trainer) -> int:
    """Fits a module without validation: nothing is chosen by it here, and it costs time.

    Args:
        module: The module.
        data: Gives the training set.
        trainer: Runs the fit, for as many epochs as it was made for.

    Returns:
        How many labelled examples an epoch has.
    """
    counter = _Counter()
    trainer.callbacks += [FirstBatch(), counter]  # type: ignore[attr-defined]
    trainer.limit_val_batches = 0
    trainer.fit(module, datamodule=data)
    return counter.trained


class _Counter(Callback):
    """Counts the examples that the first epoch really saw."""

    def __init__(self) -> None:
        self.trained = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Adds the batch's examples."""
        del pl_module, outputs, args
        if trainer.current_epoch == 0:
            self.trained += len(inputs_of(batch))
