"""The batches on which statistics are taken, from whatever a Trainer was given."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_merge.batches import inputs_of


def statistics_batches(trainer: Trainer) -> Iterable[Any]:
    """Training batches, as plain as they can be had.

    Args:
        trainer: A Trainer that is fitting.

    Returns:
        The data module's `statistics_dataloader()` if it has one (training images without
        augmentation), else the Trainer's own loader of training batches.
    """
    plain = getattr(getattr(trainer, "datamodule", None), "statistics_dataloader", None)
    loader: Any = plain() if plain is not None else trainer.train_dataloader
    return cast(Iterable[Any], loader)


def example_inputs(batches: Iterable[Any], device: torch.device | str) -> Tensor:
    """The input of the first batch, at most two examples of it, on `device`."""
    inputs = inputs_of(next(iter(batches)))
    return inputs[:2].to(device)
