"""CART: low-rank approximations of what distinguishes each network from their average.

Choi et al. 2024, "Revisiting Weight Averaging for Model Merging" (arXiv 2412.12153). No
pre-trained network is needed: the average is the centre.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.averaging import average, mean_of
from lightning_merge.aggregate.inputs import State, checked, opened_all
from lightning_merge.aggregate.matrix_merges import as_matrix, is_matrix, matrix_shape
from lightning_merge.aggregate.singular_triples import leading_triples
from lightning_merge.aggregate.vector_arithmetic import MergedVector
from lightning_merge.errors import ConfigError
from lightning_merge.state_dicts import StateDict, check_alike
from lightning_merge.tensor_table import Entry


def cart(states: Sequence[State], scale: float = 1.0, rank: float = 0.08) -> StateDict:
    """`average(states) + scale * (the sum of the truncated differences from it)`.

    Args:
        states: T >= 2 state dicts with the same names and shapes, or paths of their files.
        scale: The coefficient (lambda in the paper), which the authors search on held-out data.
        rank: As for `cart_vector`.

    Returns:
        A new state dict. What is no matrix is averaged, integers are those of the first state.

    Raises:
        MergeError: As for `cart_vector` and `average`.
    """
    direction = cart_vector(states, rank)
    return direction.at(average(states), scale)


def cart_vector(states: Sequence[State], rank: float = 0.08) -> MergedVector:
    """The direction in which CART leaves the average: a sum of low-rank differences from it.

    Per matrix `(m, n)`: `sum_t trunc_k(W_t - mean)`, with k the share `rank` of min(m, n), rounded,
    at least 1. Convolutions are matrices `(out, in * kh * kw)`.

    Args:
        states: T >= 2 state dicts with the same names and shapes, or paths of their files.
        rank: The share of the rank that is kept of each difference, in (0, 1]. With 1 the
            differences add up to 0.

    Returns:
        The direction from `average(states)`: matrices alone. The order of the states changes
        nothing but roundings.

    Raises:
        ConfigError: If there is no state, or `rank` is no share.
        MergeError: As for `average`.
    """
    if not len(states):
        raise ConfigError("CART: no state dict was given; give at least one")
    if not 0 < rank <= 1:
        raise ConfigError(f"CART: rank {rank} is no share; choose one in (0, 1]")
    found, names = opened_all(states)
    merged: StateDict = {}
    for name, entry in check_alike(found, names).items():
        if is_matrix(name, entry):
            merged[name] = checked(name, _step(name, found, names, entry, rank))
    return MergedVector(merged)


def _step(
    name: str,
    states: Sequence[Mapping[str, Tensor]],
    names: Sequence[str],
    entry: Entry,
    rank: float,
) -> Tensor:
    values = [state[name].detach() for state in states]
    # The centre in float64: rounded to half precision it would be a difference of its own.
    centre = mean_of(name, values, [1.0] * len(values), names, Entry("F64", entry.shape))
    count = max(1, round(rank * min(matrix_shape(entry))))
    total = torch.zeros_like(as_matrix(centre))
    double = any(value.dtype == torch.float64 for value in values)
    dtype = torch.float64 if double else torch.float32
    for value in values:
        wide = value.to(centre)
        # A mask's infinities do not differ.
        difference = as_matrix(torch.where(wide == centre, 0, wide - centre)).to(dtype)
        total += leading_triples(difference, count).product()
    return total.to(dtype).reshape(entry.shape)
