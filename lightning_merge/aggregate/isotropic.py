"""Isotropic merging: all directions of the merged task matrix get the same singular value.

Marczak et al. 2025, "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific
Subspaces" (arXiv 2502.04959).
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_merge.aggregate.inputs import State
from lightning_merge.aggregate.matrix_merges import Layer, spectral_vector
from lightning_merge.aggregate.singular_triples import leading_triples, polar, wide_polar
from lightning_merge.aggregate.vector_arithmetic import MergedVector
from lightning_merge.errors import ConfigError
from lightning_merge.state_dicts import StateDict

_ROUNDING = 1e-6


def iso_c(pretrained: State, vectors: Sequence[State], scale: float = 1.0) -> StateDict:
    """`pretrained + scale * (Iso-C of the task vectors)`.

    Args:
        pretrained: The state dict that the vectors start from, or the path of its file.
        vectors: T task vectors, or paths of their files. One tensor at a time is taken from each.
        scale: The coefficient; the authors search it on held-out data (`iso_c_vector` once).

    Returns:
        A new state dict. Counters are the pre-trained network's, statistics lie between its
        own and the fine-tuned networks' average.

    Raises:
        MergeError: As for `iso_c_vector`, and if the result is beyond its type's range.

    Example:
        >>> import torch
        >>> zero = {"w": torch.zeros(2, 2)}
        >>> one, other = torch.tensor([[3.0, 0], [0, 0]]), torch.tensor([[0, 0], [0, 2.0]])
        >>> iso_c(zero, [{"w": one}, {"w": other}])["w"].round(decimals=4).tolist()
        [[2.5, 0.0], [0.0, 2.5]]
    """
    return iso_c_vector(vectors).at(pretrained, scale)


def iso_c_vector(vectors: Sequence[State]) -> MergedVector:
    """The direction of Iso-C: `mean(S) * U V^T` of each matrix' sum over the tasks, `U S V^T`.

    The mean is that of all min(m, n) singular values of a matrix `(m, n)`; directions in which
    the sum is 0 stay 0. Convolutions are matrices `(out, in * kh * kw)`; what
    `matrix_merges.is_matrix` leaves out is averaged.

    Args:
        vectors: T task vectors with the same names and shapes, or paths of their files.

    Returns:
        The direction; its `at` gives the network for a scale. The order of the tasks changes
        nothing but roundings.

    Raises:
        ConfigError: If there is no vector.
        ArchitectureMismatchError: If names, shapes or kinds of numbers differ.
        NonFiniteError: If an entry is NaN or infinite.
    """
    return spectral_vector(vectors, _common)


def iso_cts(
    pretrained: State, vectors: Sequence[State], scale: float = 1.0, common: float = 0.8
) -> StateDict:
    """`pretrained + scale * (Iso-CTS of the task vectors)`.

    Arguments and errors are those of `iso_c`; `common` is as for `iso_cts_vector`.
    """
    return iso_cts_vector(vectors, common).at(pretrained, scale)


def iso_cts_vector(vectors: Sequence[State], common: float = 0.8) -> MergedVector:
    """The direction of Iso-CTS: a common subspace, and one for each task.

    Per matrix `(m, n)` of rank r = min(m, n): the first c triples of the sum over the tasks; for
    each task the first `(r - c) / T` triples of what the common left vectors leave of it; all side
    by side, made orthonormal as in TSV-M, with all singular values replaced by their mean. c is
    `common * r`, rounded so that what is left divides by T. What `matrix_merges.is_matrix` leaves
    out is averaged.

    Args:
        vectors: As for `iso_c_vector`.
        common: The share of the rank that is common, in [0, 1]; 1 gives Iso-C.

    Returns:
        The direction, as `iso_c_vector` does.

    Raises:
        ConfigError: If `common` is no share.
        MergeError: As for `iso_c_vector`.
    """
    if not 0 <= common <= 1:
        raise ConfigError(f"Iso-CTS: common {common} is no share; choose one in [0, 1]")
    return spectral_vector(vectors, partial(_common_and_specific, common=common))


def _sum(layer: Layer) -> Tensor:
    total: Tensor | None = None
    for matrix in layer:
        total = matrix.to(layer.dtype, copy=True) if total is None else total.add_(matrix)
    assert total is not None
    return total


def _common(layer: Layer) -> Tensor:
    # Small singular values count as much as large ones here.
    factor, values = wide_polar(_sum(layer))
    return factor.mul_(values.mean())


def _common_and_specific(layer: Layer, common: float) -> Tensor:
    rank, tasks = min(layer.shape), len(layer)
    own = min(round((rank - int(common * rank)) / tasks), rank // tasks)
    if own == 0:
        return _common(layer)
    shared = rank - own * tasks
    parts = [leading_triples(_sum(layer), shared)] if shared else []
    for matrix in layer:
        rest = matrix.to(torch.float64)
        if shared:
            left = parts[0].left
            rest = rest - left @ (left.mT @ rest)
        # What is left of a task in the common subspace alone is rounding.
        parts.append(leading_triples(rest, own).above(_ROUNDING * float(matrix.norm())))
    left = polar(torch.cat([part.left for part in parts], dim=1))[0]
    right = polar(torch.cat([part.right for part in parts], dim=1))[0]
    return (left @ right.mT).mul_(torch.cat([part.values for part in parts]).mean())
