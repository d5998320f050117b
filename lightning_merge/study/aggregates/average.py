"""The average of all ingredients: the uniform soup, and weighted ones."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule

from lightning_merge.aggregate import average
from lightning_merge.checkpoint import StateDict
from lightning_merge.study.aggregates.aggregate import Aggregate
from lightning_merge.study.pool import Pool


class Average(Aggregate):
    """The mean of all ingredients (uniform soup), or a weighted one (NP Merge, Eq. 1).

    Args:
        weights: One number for each ingredient, divided by their sum; equal if not given.
    """

    def __init__(self, weights: list[float] | None = None) -> None:
        self.weights = weights

    def __call__(self, states: Sequence[StateDict], pool: Pool) -> LightningModule:
        """A module with the averaged weights."""
        return pool.build(average(states, self.weights))
