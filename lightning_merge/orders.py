"""The order in which statistics are read: drawn by a seed, whatever loader is given.

A network with BatchNorm that is reset on batches of one class each normalises that class
away in every batch: what lies behind the first norm has statistics of nothing that the
network ever sees.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lightning_merge.batches import classes_of
from lightning_merge.distributed import Share, gather_over_ranks, ranks
from lightning_merge.errors import ConfigError
from lightning_merge.randomness import isolated_randomness, kept_generators
from lightning_merge.reloading import afresh, with_batches


class Drawn(list[list[Any]]):
    """The indices of the examples in each batch, in an order drawn at random."""


def in_random_order(batches: Any, seed: int = 0, examples: int | None = None) -> Any:
    """The same examples in batches drawn at random, each example once.

    Args:
        batches: A `DataLoader` over an indexed data set, in whatever order: its examples are
            drawn anew (those of its sampler, be that a part of the data set; with
            `DistributedSampler` those of all ranks). Its batch size stays, its `drop_last`
            does not, and a last batch of a single example joins the one before. Anything
            else (a list of batches, an iterable data set, a batch sampler of one's own)
            is read as it comes.
        seed: Determines the order; no other random generator is touched.
        examples: How many examples at most, drawn at random; None for all.

    Returns:
        An iterable that gives the same batches in every pass, as far as `batches` can.
        Read as it comes, it warns where most batches are of one class each.

    Raises:
        ConfigError: If `examples` are to be drawn from what cannot be indexed.
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

    What is pooled over the ranks is then what a single process finds.

    Args:
        loader: A loader that is the same on every rank; see `in_random_order`.
        limit: How many batches there are for all ranks together; all if not given.
        seed: Determines the order, the same on all ranks.

    Returns:
        Every n-th batch of one order that all ranks have in common. What cannot be drawn
        anew, or has fewer batches than there are ranks, is read by each rank as a whole.
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


@dataclass
class AsItComes:
    """Batches in an order that cannot be drawn anew.

    Attributes:
        batches: The batches.
        limit: How many of them are read; None for all.
    """

    batches: Any
    limit: int | None = None

    def __len__(self) -> int:
        """How many batches there are, where they know."""
        count = len(self.batches)
        return count if self.limit is None else min(count, self.limit)

    def __iter__(self) -> Iterator[Any]:
        """Goes through them from the beginning, and warns in the end if they are sorted."""
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
    """Whether batches come sorted by class."""

    def __init__(self) -> None:
        self.classes: set[int] = set()
        self.pure = self.seen = 0

    def see(self, batch: Any) -> None:
        labels = classes_of(batch)
        if labels is None or len(labels) < 2:
            return
        found = set(labels.tolist())
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


def _batched(chosen: Sequence[Any], size: int) -> Drawn:
    batches = Drawn([list(chosen[at : at + size]) for at in range(0, len(chosen), size)])
    if len(batches) > 1 and len(batches[-1]) == 1:
        single = batches.pop()
        batches[-1] += single
    return batches


def _is_drawn(batches: Any) -> bool:
    return isinstance(batches, DataLoader) and isinstance(batches.batch_sampler, Drawn)


def _is_plain(loader: DataLoader[Any]) -> bool:
    # What iterates in a way of its own may do anything to its batches.
    return type(loader).__iter__ is DataLoader.__iter__


def _indices(loader: Any) -> Sequence[Any] | None:
    """The indices of a loader's examples, the same on all ranks; None where it has none."""
    if (
        not isinstance(loader, DataLoader)
        or not _is_plain(loader)
        or isinstance(loader.dataset, IterableDataset)
        or type(loader.batch_sampler) is not BatchSampler
    ):
        return None
    return _sampled(loader.sampler, loader)


def _sampled(sampler: Any, loader: DataLoader[Any]) -> Sequence[Any] | None:
    if isinstance(sampler, DistributedSampler):
        # Lightning wraps samplers as data sets.
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
    # Ranks draw different orders of the same examples, or each its own part of them.
    same = all(Counter(one) == Counter(own) for one in of_ranks)
    return of_ranks[0] if same else list(chain.from_iterable(of_ranks))
