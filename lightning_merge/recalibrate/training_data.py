"""BatchNorm reset on a data module's training images."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_merge.loaders import statistics_batches_of
from lightning_merge.recalibrate.batchnorm import Weighting, reset_batchnorm


def reset_on_training_data(
    module: LightningModule,
    data: LightningDataModule,
    device: torch.device,
    examples: int | None = None,
    seed: int = 0,
    *,
    augmented: bool = False,
    weighting: Weighting = "examples",
    progress: bool = False,
) -> int:
    """Resets a module's BatchNorm on the training images of a data module.

    Args:
        module: The module; moved to the device, and changed in place.
        data: The data module, set up to fit.
        device: Where to compute.
        examples: How many examples at most, drawn at random; None for all.
        seed: Determines which, and the order.
        augmented: Whether images are augmented as for training.
        weighting: As for `reset_batchnorm`.
        progress: Whether to show a progress bar.

    Returns:
        How many layers were reset.

    Raises:
        MergeError: As `statistics_batches_of` and `reset_batchnorm` do.
    """
    batches = statistics_batches_of(data, module, device, examples, seed, augmented=augmented)
    return reset_batchnorm(module.to(device), batches, progress, weighting=weighting, seed=seed)
