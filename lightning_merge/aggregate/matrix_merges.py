"""What all spectral merges share: which tensors are matrices, and what happens to the others."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from lightning_merge.aggregate.inputs import State, checked
from lightning_merge.aggregate.vector_arithmetic import (
    MergedVector,
    check_vectors,
    summed,
)
from lightning_merge.aggregate.vector_difference import LazyTaskVector
from lightning_merge.number_types import is_complex, is_fraction
from lightning_merge.state_dicts import check_finite, table_of
from lightning_merge.tensor_names import is_running_statistic
from lightning_merge.tensor_table import Entry

_MOST_LAYERS = 4
_THREADS = Lock()
# Rows that are looked up, and the projection of texts, are no maps of what a layer is given.
_NO_MAP = re.compile(
    r"(^|[._])(pos_embed|\w*embeddings?(\.weight)?|\w*position_bias_table|cls_token|text_projection)"
    r"(\.weight)?$"
)


# Where torch's own tensors begin: multiples of so many bytes.
_ALIGNED = 64


@dataclass(frozen=True)
class Layer:
    """The K matrices of one layer, each read anew whenever it is its turn.

    Their shape is `(m, n)`, and `dtype` float64 if one of them is, else float32.
    """

    name: str
    vectors: Sequence[Mapping[str, Tensor]]
    shape: tuple[int, int]
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[Tensor]:
        device = None
        for vector in self.vectors:
            value = vector[self.name].detach()
            # Lazy ones are checked as they are read.
            if not isinstance(vector, LazyTaskVector):
                check_finite(f"task vectors: '{self.name}'", value, [])
            device = device or value.device
            matrix = as_matrix(value).to(device)
            # A file's tensors lie anywhere, on which the last bits of a product depend.
            yield matrix.clone() if matrix.data_ptr() % _ALIGNED else matrix


MatrixMerge = Callable[[Layer], Tensor | None]
"""Merges K matrices `(m, n)` to one; None where they are to be averaged."""


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

    As many layers as torch has threads (at most four) are merged at the same time, with one thread
    each: decompositions make little use of more.

    Memory: the result, and a few times the largest tensor for each of these layers.
    """
    found = check_vectors(vectors)
    tables = [table_of(vector) for vector in found]
    share = [1 / len(found)] * len(found)

    def merged(name: str) -> Tensor | None:
        entry = tables[0][name]
        if is_matrix(name, entry):
            double = any(table[name].code == "F64" for table in tables)
            dtype = torch.float64 if double else torch.float32
            one = merge(Layer(name, found, matrix_shape(entry), dtype))
            if one is not None:
                return checked(name, one.to(dtype).reshape(entry.shape))
        total = summed(found, name, share)
        return None if total is None else checked(name, total[0].to(total[1]))

    with _one_thread_each() as threads, ThreadPoolExecutor(min(threads, _MOST_LAYERS)) as pool:
        values = zip(tables[0], pool.map(merged, tables[0]), strict=True)
        # Copies by this thread: in a worker's memory they would keep its scratch space.
        return MergedVector({name: value.clone() for name, value in values if value is not None})


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Limits all libraries to one thread in a call, and yields how many torch had before.

    The limits are the whole process', so one merge at a time sets them.
    """
    import scipy.linalg  # noqa: F401  # What is loaded later is not limited.
    from threadpoolctl import threadpool_limits

    with _THREADS, threadpool_limits(1, user_api="blas"):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield threads
        finally:
            torch.set_num_threads(threads)
