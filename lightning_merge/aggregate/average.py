"""Averages of state dicts, and points on the line between two of them."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError


def average(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None
) -> StateDict:
    """The weighted mean of state dicts (Wortsman et al. 2022, "uniform soup").

    Floating-point tensors, parameters and running statistics alike, are summed in float64
    and returned in their own type. Integers (counters such as `num_batches_tracked`) and
    booleans are never averaged: they are those of the first state.

    Args:
        states: K state dicts with the same names and shapes.
        weights: K numbers, divided by their sum; equal if not given.

    Returns:
        A new state dict.

    Raises:
        ConfigError: If there is no state, or the weights do not fit.

    Example:
        >>> import torch
        >>> average([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], [3, 1])
        {'w': tensor([1.5000])}
    """
    if not states:
        raise ConfigError("average: no state dict was given; give at least one")
    weights = [1.0] * len(states) if weights is None else list(weights)
    total = sum(weights)
    if len(weights) != len(states) or total == 0 or not math.isfinite(total):
        raise ConfigError(
            f"average: {len(weights)} weights of sum {total} for {len(states)} states; "
            "give one finite weight for each, with a sum that is not 0"
        )
    merged: StateDict = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            merged[name] = first.clone()
            continue
        accumulated = torch.zeros_like(first, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            accumulated.add_(state[name].to(first.device, torch.float64), alpha=weight / total)
        merged[name] = accumulated.to(first.dtype)
    return merged


def interpolate(a: Mapping[str, Tensor], b: Mapping[str, Tensor], alpha: float) -> StateDict:
    """`alpha * a + (1 - alpha) * b` (NP Merge, Eq. 1); integers are those of `a`.

    Args:
        a: A state dict.
        b: A state dict with the same names and shapes, aligned to `a`.
        alpha: The share of `a`; 1 gives `a`, 0 gives `b`.

    Returns:
        A new state dict.
    """
    return average([a, b], [alpha, 1 - alpha])
