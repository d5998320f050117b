"""Copies of a loader with other examples, in another order or in other batches."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_merge.errors import ConfigError


def reloaded(
    loader: DataLoader[Any],
    *,
    indices: Iterable[int] | None = None,
    shuffle_seed: int | None = None,
    batch_size: int | None = None,
    drop_last: bool | None = None,
) -> DataLoader[Any]:
    """A loader of the same data set with another loader's collation and worker settings.

    The other's sampler is not copied, and its random generator is not used. `indices` are those of
    examples in the data set, in this order, `shuffle_seed` seeds a new order in every pass; without
    them all examples come in order. The rest is the other loader's if not given; an error says
    where it has none, or the data set has no indices.
    """
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigError(
            f"{type(loader.dataset).__name__} has no indices by which examples could be chosen: "
            "give a DataLoader over an indexed data set"
        )
    if loader.batch_sampler is None:
        raise ConfigError(
            "the loader makes no batches (its batch_size is None), so that none of another size "
            "can be made: give a DataLoader with a batch_size"
        )
    size = batch_size or loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if size is None:
        raise ConfigError(
            "the loader's own batch sampler does not say how large its batches are: give a "
            "batch_size"
        )
    own = bool(getattr(loader.batch_sampler, "drop_last", loader.drop_last))
    return DataLoader(
        loader.dataset if indices is None else Subset(loader.dataset, list(indices)),
        batch_size=size,
        shuffle=shuffle_seed is not None,
        drop_last=own if drop_last is None else drop_last,
        generator=torch.Generator().manual_seed(shuffle_seed or 0),
        **_ways(loader),
    )


def with_batches(
    loader: DataLoader[Any], batches: Iterable[Sequence[Any]], seed: int = 0
) -> DataLoader[Any]:
    """A loader of the same examples in other batches: a list of indices for each.

    They are iterated anew in every pass; the seed is of the worker processes' random numbers.
    """
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(seed),
        **_ways(loader),
    )


def afresh(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader of the same batches that can be iterated while the original is being iterated.

    Needed because persistent workers are shared by all iterators of a loader.
    """
    if loader.batch_size is None and loader.batch_sampler is not None:
        return with_batches(loader, loader.batch_sampler)
    iterable = isinstance(loader.dataset, IterableDataset)
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=None if iterable else loader.sampler,
        drop_last=loader.drop_last,
        generator=torch.Generator().manual_seed(0),
        **_ways(loader),
    )


def _ways(loader: DataLoader[Any]) -> dict[str, Any]:
    return {
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "prefetch_factor": loader.prefetch_factor,
    }
