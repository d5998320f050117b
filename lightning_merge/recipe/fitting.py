"""Fitting a module for a merge or a study: quietly, and counting what it learned from."""

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_merge.callbacks.first_batch import FirstBatch
from lightning_merge.recipe.counting import counting


def fit(module: LightningModule, data: LightningDataModule, trainer: Trainer) -> int:
    """Fits a module without validation: nothing is chosen by it here, and it costs time.

    Returns:
        How many labelled examples an epoch has.
    """
    trainer.callbacks.append(FirstBatch())  # type: ignore[attr-defined]
    trainer.limit_val_batches = 0
    with counting(trainer) as seen:
        trainer.fit(module, datamodule=data)
    return seen.count
