"""Means and variances of many batches together, pooled over batches and ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_merge.distributed import ranks, sum_over_ranks


@dataclass
class Pooled:
    """Mean and spread of each of C channels, joined batch by batch (Chan et al. 1983).

    Numerically as good as two passes over all values, whatever the batches are.

    Attributes:
        mean: `(C,)`, float64.
        spread: The sum of squared deviations from the mean, `(C,)`, float64.
        weight: How many values there are in a channel.
        between: Whether the deviations of the batches' means from each other count; without
            them `spread / weight` is the mean of what is given as spreads per weight.
    """

    mean: Tensor
    spread: Tensor
    weight: float = 0.0
    between: bool = True

    @classmethod
    def empty(cls, channels: int, device: torch.device, between: bool = True) -> "Pooled":
        """Of no values yet."""
        # Apple's GPUs have no float64.
        place = torch.device("cpu") if device.type == "mps" else device
        zeros = torch.zeros(channels, dtype=torch.float64, device=place)
        return cls(zeros, zeros.clone(), between=between)

    def add(self, weight: float, mean: Tensor, variance: Tensor, correction: int = 0) -> None:
        """Joins a batch of `weight` values a channel, with mean and variance `(C,)`.

        The variance is the sum of squared deviations over `weight - correction`. Nothing is joined
        where there are no values, whose mean is NaN.
        """
        if not weight:
            return
        mean, variance = (x.to(self.mean.device).to(self.mean.dtype) for x in (mean, variance))
        total = self.weight + weight
        change = mean - self.mean
        self.spread = self.spread + variance * (weight - correction)
        if self.between:
            self.spread = self.spread + change**2 * (self.weight * weight / total)
        self.mean = self.mean + change * (weight / total)
        self.weight = total


def pool_over_ranks(pools: Sequence[Pooled]) -> None:
    """Joins those of all the ranks, the same ones on each, in place; every rank takes part."""
    if not pools or ranks()[1] == 1:
        return
    weights = torch.tensor([pool.weight for pool in pools]).to(pools[0].mean)
    totals, *sums = sum_over_ranks([weights, *(pool.mean * pool.weight for pool in pools)])
    means = [total / weight.clamp_min(1) for total, weight in zip(sums, totals, strict=True)]
    spreads = sum_over_ranks([_about(pool, mean) for pool, mean in zip(pools, means, strict=True)])
    for pool, mean, spread, weight in zip(pools, means, spreads, totals.tolist(), strict=True):
        pool.mean, pool.spread, pool.weight = mean, spread, weight


def _about(pool: Pooled, mean: Tensor) -> Tensor:
    """A rank's spread about the mean of all."""
    if not pool.between:
        return pool.spread
    return pool.spread + pool.weight * (pool.mean - mean) ** 2


def channel_moments(value: Tensor, dim: int) -> tuple[int, Tensor, Tensor]:
    """How many values each channel, along `dim`, has, their mean and their variance, `(C,)` each.

    What is less exact than float32 is converted.
    """
    rows = value.detach().movedim(dim, 0).flatten(1)
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    variance, mean = torch.var_mean(rows, dim=1, correction=0)
    return rows.shape[1], mean, variance
