"""TSV-Merge: each task's leading singular vectors, made orthogonal to those of the others.

Gargiulo et al. 2025, "Task Singular Vectors: Reducing Task Interference in Model Merging"
(arXiv 2412.00081).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.inputs import State
from lightning_merge.aggregate.matrix_merges import Layer, spectral_vector
from lightning_merge.aggregate.singular_triples import leading_triples, polar
from lightning_merge.aggregate.vector_arithmetic import MergedVector
from lightning_merge.state_dicts import StateDict


def tsv_merge(pretrained: State, vectors: Sequence[State], scale: float = 1.0) -> StateDict:
    """`pretrained + scale * (TSV-M of the task vectors)`.

    To try many scales, use `tsv_vector` once; 1 is the paper's own choice without held-out data.

    Args:
        pretrained: The state dict that the vectors start from, or the path of its file.
        vectors: T task vectors, or paths of their files. One tensor at a time is taken from each.
        scale: The coefficient.

    Returns:
        A new state dict. Counters are the pre-trained network's, statistics lie between its
        own and the fine-tuned networks' average.

    Raises:
        MergeError: As for `tsv_vector`, and if the result is beyond its type's range.

    Example:
        >>> import torch
        >>> zero = {"w": torch.zeros(2, 2)}
        >>> one, other = torch.tensor([[3.0, 0], [0, 0]]), torch.tensor([[0, 0], [0, 2.0]])
        >>> tsv_merge(zero, [{"w": one}, {"w": other}])["w"].round(decimals=4).tolist()
        [[3.0, 0.0], [0.0, 2.0]]
    """
    return tsv_vector(vectors).at(pretrained, scale)


def tsv_vector(vectors: Sequence[State]) -> MergedVector:
    """The direction that TSV-M makes of T task vectors.

    Per matrix `(m, n)` of rank r = min(m, n): the first `r // T` singular triples of each task,
    `U_t (m, r // T)`, side by side; U and V are replaced by the nearest matrices with orthonormal
    columns (Procrustes), and multiplied again with the singular values. Convolutions are matrices
    `(out, in * kh * kw)`. What `matrix_merges.is_matrix` leaves out, and matrices with r < T, are
    averaged. Of directions that several tasks share exactly, which have no unique nearest basis,
    the solution of least norm is taken.

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
    return spectral_vector(vectors, _merged)


def _merged(layer: Layer) -> Tensor | None:
    count = min(layer.shape) // len(layer)
    if count == 0:
        return None
    triples = [leading_triples(matrix, count) for matrix in layer]
    left = polar(torch.cat([one.left for one in triples], dim=1).to(layer.dtype))[0]
    right = polar(torch.cat([one.right for one in triples], dim=1).to(layer.dtype))[0]
    values = torch.cat([one.values for one in triples])
    return (left * values).to(layer.dtype) @ right.to(layer.dtype).mT
