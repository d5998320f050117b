"""The batches on which statistics are taken, as the network would get them from a Trainer."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_merge.batches import inputs_of


@dataclass
class Transferred:
    """Batches on the device, after the batch-transfer hooks of module or data module.

    Normalisation often happens in `on_after_batch_transfer`: statistics taken without it
    would be those of other inputs.

    Attributes:
        loader: The batches.
        module: Whose hooks apply where the data module does not override them.
        data: The data module, if there is one.
        device: Where to.
        convert: Applied last; a Trainer's precision converts inputs so.
    """

    loader: Iterable[Any]
    module: LightningModule
    data: LightningDataModule | None
    device: torch.device
    convert: Callable[[Any], Any] = lambda batch: batch

    def __len__(self) -> int:
        """How many batches there are, where the loader knows."""
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """Goes through the loader from its beginning."""
        for batch in self.loader:
            batch = self._hook("on_before_batch_transfer")(batch, 0)
            batch = self._hook("transfer_batch_to_device")(batch, self.device, 0)
            yield self.convert(self._hook("on_after_batch_transfer")(batch, 0))

    def _hook(self, name: str) -> Callable[..., Any]:
        owner: Any = self.module
        if self.data is not None and is_overridden(name, self.data, LightningDataModule):
            owner = self.data
        hook: Callable[..., Any] = getattr(owner, name)
        return hook


def statistics_batches(trainer: Trainer) -> Transferred:
    """Training batches, as plain as they can be had; all of them, on every rank.

    Args:
        trainer: A Trainer that is fitting.

    Returns:
        The batches of the data module's `statistics_dataloader()` if it has one (training
        images without augmentation), else those of the Trainer's loader of training
        batches, made anew: the Trainer's own is in the middle of its epoch.
    """
    data = getattr(trainer, "datamodule", None)
    return Transferred(
        _plain(data) or _afresh(trainer.train_dataloader),
        trainer.lightning_module,
        data,
        trainer.strategy.root_device,
        trainer.precision_plugin.convert_input,
    )


def statistics_batches_of(
    data: LightningDataModule, module: LightningModule, device: torch.device
) -> Transferred:
    """The same, where no Trainer is fitting.

    Args:
        data: The data module.
        module: Whose batch-transfer hooks apply.
        device: Where the batches are to be.
    """
    return Transferred(_plain(data) or data.train_dataloader(), module, data, device)


def example_inputs(batches: Iterable[Any], device: torch.device | str) -> Tensor:
    """The input of the first batch, at most two examples of it, on `device`."""
    inputs = inputs_of(next(iter(batches)))
    return inputs[:2].to(device)


def _plain(data: LightningDataModule | None) -> Any:
    make = getattr(data, "statistics_dataloader", None)
    return None if make is None else make()


def _afresh(loader: Any) -> Any:
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        drop_last=loader.drop_last,
        worker_init_fn=loader.worker_init_fn,
    )
