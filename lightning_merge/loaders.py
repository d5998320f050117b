"""The batches for computing statistics, as the network would get them from a Trainer."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_merge.batches import inputs_in
from lightning_merge.distributed import Share
from lightning_merge.errors import ConfigError, DataError
from lightning_merge.orders import in_random_order, share_of


@dataclass
class Transferred:
    """Batches on the device, after the batch-transfer hooks of module or data module.

    Normalisation often happens in `on_after_batch_transfer`: statistics computed without it
    would be those of different inputs.

    Attributes:
        loader: The batches.
        module: The module whose hooks apply where the data module does not override them.
        data: The data module, if there is one.
        device: Where the batches are moved to.
        convert: Applied last, for a Trainer's precision to convert the inputs.
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
        """Iterates over the loader from its beginning."""
        for batch in self.loader:
            batch = self._hook("on_before_batch_transfer")(batch, 0)
            batch = self._hook("transfer_batch_to_device")(batch, self.device, 0)
            yield self.convert(self._hook("on_after_batch_transfer")(batch, 0))

    def in_random_order(self, seed: int) -> "Transferred":
        """The same, with batches in random order (`orders.in_random_order`)."""
        return replace(self, loader=in_random_order(self.loader, seed))

    def _hook(self, name: str) -> Callable[..., Any]:
        owner: Any = self.module
        if self.data is not None and is_overridden(name, self.data, LightningDataModule):
            owner = self.data
        return getattr(owner, name)


def statistics_share(
    trainer: Trainer,
    limit: int | None = None,
    *,
    module: LightningModule | None = None,
    augmented: bool = False,
) -> Share:
    """This rank's share of the training batches, for statistics of all ranks together.

    They are as for `statistics_batches_of`; where there is no `statistics_dataloader()` a copy of
    the Trainer's training loader is read: the Trainer's own is in the middle of its epoch. One that
    is not fitting must have a data module. `limit` counts the batches of all ranks together. The
    batch-transfer hooks of `module` apply, those of the Trainer's own if it is not given.
    """
    data = getattr(trainer, "datamodule", None)
    own = trainer.lightning_module if module is None else module
    device = trainer.strategy.root_device
    if trainer.train_dataloader is not None:
        plain = None if augmented else _plain(data)
        loader = _drawn(trainer.train_dataloader if plain is None else plain, 0)
        convert = trainer.precision_plugin.convert_input
        batches = Transferred(loader, own, data, device, convert)
    elif data is not None:
        batches = statistics_batches_of(data, own, device, augmented=augmented)
    else:
        raise ConfigError(
            "statistics are taken on training data, and there is none: give the Trainer a data "
            "module, or leave the reset of BatchNorm out"
        )
    share = share_of(batches.loader, limit)
    return replace(share, batches=replace(batches, loader=share.batches))


def statistics_batches_of(
    data: LightningDataModule,
    module: LightningModule,
    device: torch.device,
    examples: int | None = None,
    seed: int = 0,
    *,
    augmented: bool = False,
) -> Transferred:
    """All training batches on `device`, without augmentation if possible, in random order.

    They are those of the data module's `statistics_dataloader()` (training images without
    augmentation) if it has one and they are not to be `augmented`. With several loaders they are
    all batches, one loader after the other. The module's batch-transfer hooks apply. At most so
    many `examples` of an indexable data set are drawn, at random (see `in_random_order`).
    """
    plain = None if augmented else _plain(data)
    loader = data.train_dataloader() if plain is None else plain
    return Transferred(_drawn(loader, seed, examples), module, data, device)


def ordered_batches_of(
    data: LightningDataModule, module: LightningModule, device: torch.device
) -> Transferred:
    """The same in the loader's own order, for methods that use the first examples' labels.

    Not for BatchNorm statistics: the data set may be sorted by class.
    """
    plain = _plain(data)
    return Transferred(data.train_dataloader() if plain is None else plain, module, data, device)


@contextmanager
def not_torn_down(data: LightningDataModule) -> Iterator[None]:
    """Keeps what a data module has read: Lightning tears it down after each fit and each test."""
    own = vars(data).get("teardown")
    data.teardown = _nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        del data.teardown
        if own is not None:
            data.teardown = own  # type: ignore[method-assign]


def _nothing(stage: str) -> None:
    """Not a lambda: a strategy that starts processes pickles the data module."""
    del stage


def few_test_batches(
    data: LightningDataModule,
    module: LightningModule,
    device: torch.device,
    examples: int,
    seed: int = 0,
) -> Transferred:
    """Batches of so many test images at most, drawn at random, for figures.

    There must be exactly one test loader, over an indexable data set.
    """
    return Transferred(_drawn(data.test_dataloader(), seed, examples), module, data, device)


def example_inputs(batches: Iterable[Any], device: torch.device | str) -> Tensor:
    """The inputs of the first batch that has any, at most two examples, on `device`."""
    inputs = next(inputs_in(batches), None)
    if inputs is None:
        raise DataError("there is no example to look at the network with: give data that has some")
    return inputs[:2].to(device)


def loaders_in(given: Any) -> list[Any]:
    """The loaders in what a data module gives: one, or any collection that Lightning accepts."""
    # Lightning takes an empty list for a loader. Whether one is true asks for its length.
    return [] if given in (None, [], (), {}) else list(CombinedLoader(given).flattened)


def _plain(data: LightningDataModule | None) -> Any:
    make = getattr(data, "statistics_dataloader", None)
    return None if make is None else make()


@dataclass
class _InTurn:
    """The batches of several loaders, one loader after the other."""

    loaders: list[Any]

    def __len__(self) -> int:
        return sum(len(loader) for loader in self.loaders)

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.loaders)


def _drawn(given: Any, seed: int, examples: int | None = None) -> Any:
    """The batches of a loader, or of several in any collection that Lightning accepts."""
    loaders = CombinedLoader(given).flattened
    if len(loaders) == 1:
        return in_random_order(loaders[0], seed, examples)
    # A list may also contain batches instead of loaders.
    if examples is not None or any(isinstance(loader, Tensor) for loader in loaders):
        return in_random_order(given, seed, examples)
    return _InTurn([in_random_order(loader, seed) for loader in loaders])
