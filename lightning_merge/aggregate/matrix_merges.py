"""What all spectral merges share: which tensors are matrices, and what happens to the others."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.inputs import State, checked
from lightning_merge.aggregate.vector_arithmetic import (
    MergedVector,
    check_vectors,
    is_running_statistic,
    summed,
)
from lightning_merge.aggregate.vector_difference import LazyTaskVector
from lightning_merge.number_types import is_complex, is_fraction
from lightning_merge.state_dicts import StateDict, check_finite, table_of
from lightning_merge.tensor_table import Entry

MatrixMerge = Callable[[Sequence[Tensor]], Tensor | None]
"""Merges K matrices `(m, n)` to one; None where they are to be averaged."""

# Rows that are looked up, and the projection of texts, are no maps of what a layer is given.
_NO_MAP = re.compile(
    r"(^|[._])(pos_embed|\w*embeddings?(\.weight)?|\w*position_bias_table|cls_token|text_projection)"
    r"(\.weight)?$"
)


def is_matrix(name: str, entry: Entry) -> bool:
    """Whether a tensor is a matrix `(out, everything else)` of real numbers.

    Linear and convolutional weights are. What has one axis, or only one row or column, is not, nor
    are running statistics, embeddings (of tokens, positions, classes) and projections of texts,
    which are known by their names.
    """
    if len(entry.shape) < 2 or not is_fraction(entry.code) or is_complex(entry.code):
        return False
    rows, columns = matrix_shape(entry)
    return min(rows, columns) > 1 and not is_running_statistic(name) and not _NO_MAP.search(name)


def matrix_shape(entry: Entry) -> tuple[int, int]:
    """`(out, in * kh * kw)` of a linear or convolutional weight."""
    columns = 1
    for length in entry.shape[1:]:
        columns *= length
    return entry.shape[0], columns


def as_matrix(value: Tensor) -> Tensor:
    """`(out, everything else)`, in a type that torch decomposes."""
    value = value.detach().reshape(value.shape[0], -1)
    return value if value.dtype == torch.float64 else value.to(torch.float32)


def spectral_vector(vectors: Sequence[State], merge: MatrixMerge) -> MergedVector:
    """Merges task vectors matrix by matrix, and averages everything else.

    Memory: the result, and K times the largest tensor for vectors that are lazy.

    Args:
        vectors: K task vectors with the same names and shapes, or paths of their files.
        merge: What to do with a layer's K matrices.

    Returns:
        The direction; its `at` gives the network for a scale.

    Raises:
        ConfigError: If there is no vector.
        ArchitectureMismatchError: If names, shapes or kinds of numbers differ.
        NonFiniteError: If an entry is NaN or infinite, or the result is beyond its type's range.
    """
    found = check_vectors(vectors)
    share = [1 / len(found)] * len(found)
    merged: StateDict = {}
    for name, entry in table_of(found[0]).items():
        if is_matrix(name, entry):
            matrices = []
            for vector in found:
                value = vector[name].detach()
                # Lazy ones are checked as they are read.
                if not isinstance(vector, LazyTaskVector):
                    check_finite(f"task vectors: '{name}'", value, [])
                matrices.append(as_matrix(value))
            one = merge([matrix.to(matrices[0].device) for matrix in matrices])
            if one is not None:
                double = any(matrix.dtype == torch.float64 for matrix in matrices)
                dtype = torch.float64 if double else torch.float32
                merged[name] = checked(name, one.to(dtype).reshape(entry.shape))
                continue
        total = summed(found, name, share)
        if total is not None:
            merged[name] = checked(name, total[0].to(total[1]))
    return MergedVector(merged)
