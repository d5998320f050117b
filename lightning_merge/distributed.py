"""Statistics over all ranks of a distributed run; a single process is one rank."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from lightning_merge.errors import DataError

T = TypeVar("T")


@dataclass
class Share:
    """One rank's share of the batches on which statistics are taken.

    Code that computes statistics on a share (`reset_batchnorm`, `Repair`,
    `ActivationMatching`) pools them over the ranks, so that they cover all batches; every rank
    has to take part.

    Attributes:
        batches: Those of this rank, at least one; ranks may have different numbers of them.
        copies: How many ranks read each batch: 1 where they are divided.
    """

    batches: Iterable[Any]
    copies: int = 1

    def __len__(self) -> int:
        """How many batches this rank reads, if they have a length."""
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """Iterates over the batches from the beginning."""
        return iter(self.batches)


def ranks() -> tuple[int, int]:
    """This process's rank and the number of ranks: `(0, 1)` in a single process."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def sum_over_ranks(values: Sequence[Tensor]) -> list[Tensor]:
    """The sums over the ranks of tensors of the same shapes on one device, in float64.

    It takes one all-reduce.
    """
    flat = torch.cat([value.detach().double().reshape(-1) for value in values])
    if ranks()[1] > 1:
        distributed.all_reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]


def gather_over_ranks(value: T) -> list[T]:
    """The values of all ranks, in rank order; they must be picklable."""
    count = ranks()[1]
    if count == 1:
        return [value]
    gathered: list[Any] = [None] * count
    distributed.all_gather_object(gathered, value)
    return gathered


def rank_batches(examples: int, batch_size: int) -> list[list[int]]:
    """The indices of examples in this rank's batches; all ranks together see every example once.

    A `DistributedSampler` repeats examples until the ranks have equally many; here their batches
    differ in size instead, by one at most. Every rank has the same number of batches, so that all
    ranks take part in the collective calls of each step.

    `examples` counts those of all ranks, `batch_size` those of a batch on each. The last batch may
    have fewer, or also some of the examples that do not suffice for one more batch on each rank. In
    a single process indices go up by `batch_size`.
    """
    rank, count = ranks()
    if examples < count:
        raise DataError(f"{examples} examples for {count} ranks: use fewer processes")
    starts = list(range(0, examples, batch_size * count))
    if examples - starts[-1] < count:
        starts.pop()
    batches = []
    for start, stop in zip(starts, [*starts[1:], examples], strict=True):
        size = stop - start
        batches.append(
            list(range(start + rank * size // count, start + (rank + 1) * size // count))
        )
    return batches
