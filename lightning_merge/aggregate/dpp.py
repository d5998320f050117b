"""Selecting a subset of models with a determinantal point process: large det(L_Y).

Greedy search by Chen et al. 2018, "Fast Greedy MAP Inference for Determinantal Point Process";
sampling by Kulesza and Taskar 2012, "Determinantal Point Processes for Machine Learning".
"""

import math
from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from lightning_merge.aggregate.kernel import Numbers, as_numbers, dpp_kernel
from lightning_merge.errors import ConfigError

_MOST_SUBSETS = 200_000
# A residual below this share of an item's own variance is rounding: the item is a linear
# combination of those selected before it.
_RANK_TOLERANCE = 1e-10


def select_dpp(quality: Numbers, similarity: Numbers, size: int | None = None) -> list[int]:
    """Which models to merge: good ones that are not alike.

    With L = diag(q) S diag(q), the greedy approximation of the subset of `size` models with
    the largest det(L_Y); `exact_map` gives the optimum for small pools, `sample_kdpp` a draw.

    `size=None` does **not** mean that the determinant decides: with the qualities' norm at
    one, every diagonal entry of L is at most one, so no set beats the empty one, and the paper
    does not say how it chose its number. It returns the whole greedy order, of all models with
    a quality above zero that are no copies of the rest; every prefix is the selection of that
    size. Merge along it and keep the prefix that is best on held-out data.

    Args:
        quality: N numbers, scaled to a norm of one; those of zero or less are never selected.
        similarity: `(N, N)`, symmetric and positive semi-definite.
        size: How many models; None for the whole greedy order.

    Returns:
        Indices, in the order in which they were selected.

    Raises:
        ConfigError: If the numbers do not fit (see `dpp_kernel`), or fewer than `size` models
            are usable.

    Example:
        >>> import torch
        >>> similarity = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> select_dpp([1.0, 0.9, 0.5], similarity, size=2)
        [0, 2]
    """
    kernel = dpp_kernel(quality, similarity)
    order = greedy_order(kernel)
    if size is None:
        return order
    _check_size(size, len(order))
    return order[:size]


def greedy_order(kernel: Numbers) -> list[int]:
    """All usable items, each the one that makes the determinant with those before it largest.

    Args:
        kernel: L, `(N, N)` (a tensor, an array or lists), symmetric and positive semi-definite.

    Returns:
        Indices. Items are left out that would make the determinant zero: those without
        quality, and linear combinations of items before them. Of equals, the lower index is
        first.
    """
    L = _checked(kernel)
    return _pivots(L, lambda residual: int(residual.argmax()), len(L))[0]


def exact_map(kernel: Numbers, size: int) -> list[int]:
    """The subset of `size` items with the largest determinant, by trying all of them.

    Args:
        kernel: L, `(N, N)` (a tensor, an array or lists), symmetric and positive semi-definite.
        size: How many items.

    Returns:
        Indices, ascending; of equals, the first in lexicographic order.

    Raises:
        ConfigError: If there are more than 200,000 subsets, or all determinants are zero.
    """
    L = _checked(kernel)
    usable = len(greedy_order(L))
    _check_size(size, usable)
    subsets = math.comb(len(L), size)
    if subsets > _MOST_SUBSETS:
        raise ConfigError(
            f"DPP: {subsets} subsets are too many to try; use select_dpp, which is greedy"
        )
    indices = torch.tensor(list(combinations(range(len(L)), size)))
    minors = L[indices[:, :, None], indices[:, None, :]]
    best = int(torch.linalg.slogdet(minors).logabsdet.argmax())
    return [int(index) for index in indices[best]]


def sample_kdpp(kernel: Numbers, size: int, generator: torch.Generator | None = None) -> list[int]:
    """Draws a subset of exactly `size` items with a probability proportional to det(L_Y).

    Args:
        kernel: L, `(N, N)` (a tensor, an array or lists), symmetric and positive semi-definite.
        size: How many items.
        generator: Where the chances come from, on the CPU; torch's own if not given.

    Returns:
        Indices, ascending.

    Raises:
        ConfigError: If every set of that size has the determinant zero.
    """
    from scipy.linalg.lapack import dgejsv

    L = _checked(kernel)
    order, rows = _pivots(L, lambda residual: int(residual.argmax()), len(L))
    _check_size(size, len(order))
    # Jacobi rotations of the factor: next to the largest, small ones keep all of their digits.
    singular, vectors, *_ = dgejsv(rows[: len(order)].T.numpy(), joba=2, jobv=3, jobr=0)
    values = torch.from_numpy(singular).log().mul(2).flip(0)
    V = torch.from_numpy(vectors).flip(1)[:, _draw_eigenvectors(values, size, generator)]

    def by_chance(residual: Tensor) -> int:
        return int(torch.multinomial(residual, 1, generator=generator))

    return sorted(_pivots(V @ V.T, by_chance, size)[0])


def _checked(kernel: Numbers) -> Tensor:
    L = as_numbers(kernel)
    if L.dim() != 2 or L.shape[0] != L.shape[1] or not len(L):
        raise ConfigError(f"DPP: the kernel has the shape {tuple(L.shape)}; give (N, N)")
    return L


def _draw_eigenvectors(values: Tensor, size: int, generator: torch.Generator | None) -> list[int]:
    """`size` indices with a probability proportional to the product of their eigenvalues.

    `values` are the eigenvalues' logarithms.
    """
    e = _elementary_symmetric(values, size)
    chances = torch.rand(len(values), generator=generator, dtype=torch.float64).log()
    chosen: list[int] = []
    for n in range(len(values), 0, -1):
        left = size - len(chosen)
        if left == 0:
            break
        # The last ones needed are certain; rounding must not leave them out.
        if n == left or chances[n - 1] + e[n][left] < values[n - 1] + e[n - 1][left - 1]:
            chosen.append(n - 1)
    return chosen


def _elementary_symmetric(values: Tensor, size: int) -> list[Tensor]:
    """`e[n][k]`: the logarithm of the sum of the products of every k of the first n values."""
    e = [torch.tensor([0.0] + [-math.inf] * size, dtype=torch.float64)]
    for value in values:
        last = e[-1]
        e.append(torch.cat([last[:1], torch.logaddexp(last[1:], value + last[:-1])]))
    return e


def _pivots(kernel: Tensor, choose: Callable[[Tensor], int], size: int) -> tuple[list[int], Tensor]:
    """The order of a Cholesky factorisation with chosen pivots, up to the kernel's rank; its rows.

    The residual of an item is the ratio of the determinants with and without it. Choosing
    the largest is greedy MAP; drawing by it, for a projection, is sampling from its DPP.
    """
    variance = kernel.diagonal().clone()
    residual = variance.clamp(min=0)
    rows = torch.zeros(size, len(kernel), dtype=torch.float64)
    order: list[int] = []
    while len(order) < size:
        residual[residual <= _RANK_TOLERANCE * variance] = 0
        if not bool((residual > 0).any()):
            break
        item = choose(residual)
        past = rows[: len(order)]
        row = (kernel[item] - past[:, item] @ past) / residual[item].sqrt()
        rows[len(order)] = row
        residual = (residual - row.square()).clamp(min=0)
        residual[item] = 0
        variance[order] = math.inf
        order.append(item)
    return order, rows


def _check_size(size: int, usable: int) -> None:
    if not 1 <= size <= usable:
        raise ConfigError(
            f"DPP: {size} models of {usable} that are usable (of a quality above zero, and no "
            f"copies of the rest); choose a size from 1 to {usable}"
        )
