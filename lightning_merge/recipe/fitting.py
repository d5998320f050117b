"""Fitting a module for a merge or a study: quietly, and counting what it learned from."""

from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_merge.callbacks.diverged import StopDiverged
from lightning_merge.callbacks.epoch_checkpoint import EpochCheckpoint
from lightning_merge.callbacks.first_batch import FirstBatch
from lightning_merge.loaders import not_torn_down
from lightning_merge.recipe.counting import counting


@dataclass(frozen=True)
class Fitted:
    """How many labelled examples an epoch has, and what training took before an interruption."""

    examples: int
    seconds: float


def fit(
    module: LightningModule,
    data: LightningDataModule,
    trainer: Trainer,
    start: Path | None = None,
) -> int:
    """Fits a module without validation: nothing is chosen by it here, and it costs time.

    Args:
        module: The module.
        data: The data.
        trainer: The Trainer.
        start: A Trainer's checkpoint to go on from.

    Returns:
        How many labelled examples an epoch has.
    """
    trainer.callbacks.append(FirstBatch())  # type: ignore[attr-defined]
    trainer.limit_val_batches = 0
    with counting(trainer) as seen, not_torn_down(data):
        trainer.fit(module, datamodule=data, ckpt_path=start)
    return seen.count


def fit_resumably(
    module: LightningModule, data: LightningDataModule, trainer: Trainer, kept: Path
) -> Fitted:
    """As `fit`, from the last epoch whose end is in the file `kept` (`EpochCheckpoint`), if any."""
    keeper = EpochCheckpoint(kept)
    trainer.callbacks += [StopDiverged(), keeper]  # type: ignore[attr-defined]
    examples = fit(module, data, trainer, keeper.found())
    return Fitted(examples, keeper.seconds)
