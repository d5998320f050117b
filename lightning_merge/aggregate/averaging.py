"""Averages of state dicts, and points on the line between two of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_merge.aggregate.exact_mean import SPAN, Mean
from lightning_merge.aggregate.inputs import State, opened_all
from lightning_merge.aggregate.name_weights import NameWeights, Weights
from lightning_merge.errors import ConfigError
from lightning_merge.number_types import is_fraction
from lightning_merge.state_dicts import StateDict, check_alike, entry_of, raw_of, tensor_of
from lightning_merge.tensor_table import Entry


def average(states: Sequence[State], weights: Weights | None = None) -> StateDict:
    """The weighted mean of state dicts (Wortsman et al. 2022, "uniform soup").

    Floating-point and complex tensors, parameters and running statistics alike, are summed in
    float64 (float64 itself in twice its precision) and rounded to the widest type that an
    ingredient has. The order of the states changes nothing. Integers (counters such as
    `num_batches_tracked`) and booleans are never averaged: they are those of the first state.

    Args:
        states: K state dicts with the same names and shapes, or paths of files of weights.
        weights: K numbers, divided by their sum; equal if not given. Or K numbers by regular
            expression: the first that is found in a tensor's name counts, others are equal.

    Returns:
        A new state dict, detached, on the first state's devices.

    Raises:
        ConfigError: If there is no state, or the weights do not fit.
        ArchitectureMismatchError: If names, shapes or kinds of numbers differ.
        CheckpointError: If a tensor is no free parameter, or no plain array of numbers.
        NonFiniteError: If a tensor holds NaN, or infinity where not all hold the same, or the
            result is beyond its type's range, or a running variance below 0.

    Example:
        >>> import torch
        >>> average([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], [3, 1])
        {'w': tensor([1.5000])}
    """
    if not len(states):
        raise ConfigError("average: no state dict was given; give at least one")
    shares = NameWeights(weights, len(states), "average").check_means()
    found, names = opened_all(states)
    merged = check_alike(found, names)
    shares.check_used(merged)
    result: StateDict = {}
    for key, entry in merged.items():
        # A batch counter may be absent in some.
        values = [state[key] for state in found if key in state]
        if is_fraction(entry.code):
            result[key] = mean_of(key, values, shares.of(key), names, entry)
        else:
            result[key] = values[0].detach().clone()
    return result


def mean_of(
    key: str, values: Sequence[Tensor], weights: Sequence[float], names: Sequence[str], entry: Entry
) -> Tensor:
    """The mean of one tensor, in the first one's memory format and on its device."""
    raws = [raw_of(value) for value in values]
    codes = [entry_of(key, value).code for value in values]
    mean = Mean(key, raws, codes, weights, names, entry.code)
    out = np.empty(mean.size * mean.bytes_of_one, np.uint8)
    for start in range(0, mean.size, SPAN):
        for begin, block in mean.blocks(start):
            out[begin : begin + len(block)] = block
    result = tensor_of(out, entry).to(values[0].device)
    # As the first one lies in memory, `channels_last` for instance.
    return (
        result
        if values[0].is_contiguous()
        else torch.empty_like(values[0], dtype=result.dtype, requires_grad=False).copy_(result)
    )


def interpolate(a: State, b: State, alpha: float) -> StateDict:
    """`alpha * a + (1 - alpha) * b` (NP Merge, Eq. 1); integers are those of `a`.

    Args:
        a: A state dict, or the path of a file of weights.
        b: Another with the same names and shapes, aligned to `a`.
        alpha: The share of `a`; 1 gives `a`, 0 gives `b`.

    Returns:
        A new state dict.

    Raises:
        MergeError: As for `average`.
    """
    return average([a, b], [alpha, 1 - alpha])
