"""The batches on which statistics are taken, as the network would get them from a Trainer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_merge.batches import inputs_of
from lightning_merge.distributed import Share, shared_loader
from lightning_merge.errors import ConfigError


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
        batches, made anew: the Trainer's own is in the middle of its epoch. Of several
        loaders all batches, one loader after the other.
    """
    data = getattr(trainer, "datamodule", None)
    return Transferred(
        _plain(data) or _every(trainer.train_dataloader),
        trainer.lightning_module,
        data,
        trainer.strategy.root_device,
        trainer.precision_plugin.convert_input,
    )


def statistics_share(trainer: Trainer, limit: int | None = None) -> Share:
    """This rank's share of the training batches, for statistics of all ranks together.

    Args:
        trainer: A Trainer that is fitting.
        limit: How many batches there are for all ranks together; all if not given.
    """
    batches = statistics_batches(trainer)
    return Share(replace(batches, loader=shared_loader(batches.loader, limit)))


def statistics_batches_of(
    data: LightningDataModule,
    module: LightningModule,
    device: torch.device,
    examples: int | None = None,
    seed: int = 0,
) -> Transferred:
    """The same, where no Trainer is fitting.

    Args:
        data: The data module.
        module: Whose batch-transfer hooks apply.
        device: Where the batches are to be.
        examples: How many examples at most, drawn at random; None for all.
        seed: Determines which.

    Raises:
        ConfigError: If `examples` are to be drawn from what cannot be indexed.
    """
    loader = _plain(data) or data.train_dataloader()
    if examples is not None:
        loader = _some(loader, examples, seed)
    return Transferred(loader, module, data, device)


def few_test_batches(
    data: LightningDataModule,
    module: LightningModule,
    device: torch.device,
    examples: int,
    seed: int = 0,
) -> Transferred:
    """Batches of test images, drawn at random, for figures.

    Args:
        data: The data module, set up to test.
        module: Whose batch-transfer hooks apply.
        device: Where the batches are to be.
        examples: How many examples at most.
        seed: Determines which.

    Raises:
        ConfigError: If there is not one loader of test images, which can be indexed.
    """
    loader = data.test_dataloader()
    if isinstance(loader, Sequence) and len(loader) == 1:
        (loader,) = loader
    return Transferred(_some(loader, examples, seed), module, data, device)


def example_inputs(batches: Iterable[Any], device: torch.device | str) -> Tensor:
    """The input of the first batch, at most two examples of it, on `device`."""
    inputs = inputs_of(next(iter(batches)))
    return inputs[:2].to(device)


def _plain(data: LightningDataModule | None) -> Any:
    make = getattr(data, "statistics_dataloader", None)
    return None if make is None else make()


def _some(loader: Any, examples: int, seed: int) -> Any:
    """A loader of examples drawn from another's; the first ones could be all of one class."""
    if (
        not isinstance(loader, DataLoader)
        or loader.batch_size is None
        or isinstance(loader.dataset, IterableDataset)
    ):
        raise ConfigError(
            f"{examples} examples cannot be drawn from a {type(loader).__name__} without an index: "
            "give a DataLoader over an indexed data set, or (for statistics) leave "
            "statistics_examples out"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(loader.dataset), generator=generator)[:examples]  # type: ignore[arg-type]
    return DataLoader(
        Subset(loader.dataset, chosen.sort().values.tolist()),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
    )


@dataclass
class _InTurn:
    """The batches of several loaders, one loader after the other."""

    loaders: list[Any]

    def __len__(self) -> int:
        return sum(len(loader) for loader in self.loaders)

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.loaders)


def _every(given: Any) -> Any:
    loaders = [_afresh(loader) for loader in CombinedLoader(given).flattened]
    return loaders[0] if len(loaders) == 1 else _InTurn(loaders)


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
