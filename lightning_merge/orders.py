"""The order in which batches are read for statistics: drawn from a seed, for any loader.

If the BatchNorm statistics are reset on batches of one class each, the first norm removes what
distinguishes that class in every batch, and all later norms get statistics of activations that
never occur at test time.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lightning_merge.batches import targets_of
from lightning_merge.distributed import Share, gather_over_ranks, ranks
from lightning_merge.errors import ConfigError
from lightning_merge.randomness import isolated_randomness, kept_generators
from lightning_merge.reloading import afresh, with_batches


class Drawn(list[list[Any]]):
    """The indices of the examples in each batch, in random order."""


def in_random_order(batches: Any, seed: int = 0, examples: int | None = None) -> Any:
    """The same examples in random batches, each example once, the same in every pass.

    The examples of a `DataLoader` over an indexable data set, in any order, are reshuffled (those
    of its sampler, which may be a part of the data set; with `DistributedSampler` those of all
    ranks). Its batch size is kept, its `drop_last` is ignored, and a last batch of a single example
    is joined to the one before. With `examples` so many at most are drawn, at random; no other
    random generator is used than the seed's.

    Anything else (a list of batches, an iterable data set, a custom batch sampler) is read in its
    own order, as far as it can be again, with a warning if most batches have one class each.
    """
    if isinstance(batches, Share):
        return replace(batches, batches=in_random_order(batches.batches, seed))
    own = getattr(batches, "in_random_order", None)
    if own is not None:
        return own(seed)
    indices = _indices(batches)
    if indices is not None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(indices), generator=generator)[:examples].tolist()
        chosen = [indices[position] for position in order]
        return with_batches(batches, _batched(chosen, batches.batch_sampler.batch_size), seed)
    if examples is not None:
        raise ConfigError(
            f"{examples} examples cannot be drawn from a {type(batches).__name__} without an "
            "index: give a DataLoader over an indexed data set, or (for statistics) leave "
            "statistics_examples out"
        )
    drawn = isinstance(batches, AsItComes) or _is_drawn(batches)
    return batches if drawn else AsItComes(batches)


def share_of(loader: Any, limit: int | None = None, seed: int = 0) -> Share:
    """This rank's share of a loader's batches, each batch whole and on one rank.

    Statistics pooled over the ranks are then those of a single process. The loader and the seed are
    the same on every rank, and so is `limit`, how many batches there are for all ranks together.
    The share is every n-th batch of one order that all ranks share (see `in_random_order`). Batches
    that cannot be reshuffled, or fewer batches than ranks, are all read by every rank.
    """
    rank, count = ranks()
    drawn = in_random_order(loader, seed)
    if not _is_drawn(drawn):
        whole = drawn.batches if isinstance(drawn, AsItComes) else drawn
        return Share(AsItComes(whole, limit), copies=count)
    batches = drawn.batch_sampler[:limit]
    divided = len(batches) >= count
    own = Drawn(batches[rank::count] if divided else batches)
    return Share(with_batches(drawn, own, seed), copies=1 if divided else count)


def examples_of(loader: DataLoader[Any], seed: int = 0) -> Sequence[Any]:
    """The indices of the examples that one pass over a loader reads, in ascending order.

    Of an indexed data set that is divided by samplers they are this loader's part, its `drop_last`
    ignored. No other random generator is used than the seed's, for what a sampler draws.
    """
    sampler, everything = loader.sampler, range(len(loader.dataset))  # type: ignore[arg-type]
    if loader.batch_sampler is not None and not _is_torchs(loader.batch_sampler):
        sampler = chain.from_iterable(loader.batch_sampler)
    elif type(sampler) in (SequentialSampler, RandomSampler) and len(sampler) >= len(everything):  # type: ignore[arg-type]
        return everything
    with isolated_randomness(loader):
        torch.manual_seed(seed)
        return sorted(sampler)


@dataclass
class AsItComes:
    """Batches that cannot be reshuffled, so many at most."""

    batches: Any
    limit: int | None = None

    def __len__(self) -> int:
        """How many batches there are, if they have a length."""
        count = len(self.batches)
        return count if self.limit is None else min(count, self.limit)

    def __iter__(self) -> Iterator[Any]:
        """Iterates from the beginning, and warns at the end if the batches are sorted."""
        loader = self.batches
        if isinstance(loader, DataLoader) and _is_plain(loader):
            loader = afresh(loader)
        sorted_ = _Sorted()
        with kept_generators(self.batches):
            for batch in islice(iter(loader), self.limit):
                sorted_.see(batch)
                yield batch
        sorted_.warn()


class _Sorted:
    """Detects batches that are sorted by class."""

    def __init__(self) -> None:
        self.classes: set[tuple[float, ...]] = set()
        self.pure = self.seen = 0

    def see(self, batch: Any) -> None:
        labels = _labels(batch)
        if labels is None or labels.dim() == 0 or len(labels) < 2:
            return
        # Integers, or rows of several numbers: one-hot vectors, labels, boxes.
        found = {tuple(row) for row in labels.detach().reshape(len(labels), -1).tolist()}
        self.classes |= found
        self.seen += 1
        self.pure += len(found) == 1

    def warn(self) -> None:
        sorted_ = len(self.classes) > 1 and self.pure > 1 and 2 * self.pure >= self.seen
        if sorted_ and ranks()[0] == 0:
            warnings.warn(
                f"{self.pure} of {self.seen} batches are of one class each, and statistics of "
                "such batches are not those of the data: shuffle them, or give a DataLoader "
                "over an indexed data set",
                stacklevel=3,
            )


def _labels(batch: Any) -> Tensor | None:
    """A batch's targets, those in a dict or in a list of numbers too."""
    found = targets_of(batch)
    if found is None and isinstance(batch, list | tuple) and len(batch) > 1:
        second = batch[1]
        if isinstance(second, Mapping):
            return targets_of(second)
        if isinstance(second, list) and all(isinstance(one, int | float) for one in second):
            return torch.tensor(second)
    return found


def _batched(chosen: Sequence[Any], size: int) -> Drawn:
    batches = Drawn([list(chosen[at : at + size]) for at in range(0, len(chosen), size)])
    if len(batches) > 1 and len(batches[-1]) == 1:
        single = batches.pop()
        batches[-1] += single
    return batches


def _is_drawn(batches: Any) -> bool:
    return isinstance(batches, DataLoader) and isinstance(batches.batch_sampler, Drawn)


def _is_plain(loader: DataLoader[Any]) -> bool:
    # A loader with its own `__iter__` may do anything to its batches.
    return type(loader).__iter__ is DataLoader.__iter__


def _is_torchs(batches: Any) -> bool:
    # A batch sampler with its own `__iter__` may group examples as it likes.
    return isinstance(batches, BatchSampler) and type(batches).__iter__ is BatchSampler.__iter__


def _indices(loader: Any) -> Sequence[Any] | None:
    """The indices of a loader's examples, the same on all ranks; None where it has none."""
    if (
        not isinstance(loader, DataLoader)
        or not _is_plain(loader)
        or isinstance(loader.dataset, IterableDataset)
        or not _is_torchs(loader.batch_sampler)
    ):
        return None
    return _sampled(loader.sampler, loader)


def _sampled(sampler: Any, loader: DataLoader[Any]) -> Sequence[Any] | None:
    if isinstance(sampler, DistributedSampler):
        # Lightning wraps samplers in data sets.
        inner = getattr(sampler.dataset, "_sampler", None)
        if inner is None or sampler.dataset is loader.dataset:
            return range(len(sampler.dataset))  # type: ignore[arg-type]
        return _sampled(inner, loader)
    if type(sampler) in (SequentialSampler, RandomSampler):
        everything = range(len(sampler.data_source))
        if len(sampler) >= len(everything):
            return everything
    if not hasattr(sampler, "__len__"):
        return None
    with isolated_randomness(loader):
        own = list(islice(iter(sampler), len(sampler)))
    of_ranks = gather_over_ranks(own)
    # Ranks draw different orders of the same examples, or different parts of them.
    same = all(Counter(one) == Counter(own) for one in of_ranks)
    return of_ranks[0] if same else list(chain.from_iterable(of_ranks))
