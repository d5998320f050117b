"""Leading singular triples and polar factors of matrices, by the Gram matrix of the smaller side.

A full decomposition of a layer computes all triples; a merge keeps few. The eigenvectors of the
smaller Gram matrix give these alone, several times faster. What is lost: the Gram matrix squares
the condition number. So its eigenvectors are only a basis, in which the triples are computed
anew in float64 (Rayleigh-Ritz); where all triples are wanted, the Gram matrix is in float64
unless its own eigenvalues show that float32 is enough.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Of eigenvalues, so 1e-6 of singular values: below it there are rounding errors of float32.
_NO_DIRECTION = 1e-12
# The least share of the largest eigenvalue that leaves polar factors of float32 five digits: by a
# Gram matrix in float32, and by one in float64.
_CONDITIONED, _CONDITIONED_WIDE = 1e-2, 1e-4
# So many further eigenvectors keep rounding at the edge of a basis away from the last triples.
_MORE = 16
# Between these, squares are far from the smallest and largest numbers of float32.
_USUAL = (1e-8, 1e8)


class Triples(NamedTuple):
    """The largest k singular values of a matrix `(m, n)`, and their vectors, in float64.

    `values`, `(k,)`, has the largest first; `left`, `(m, k)`, and `right`, `(n, k)`, have columns
    of zeros where the singular value is 0, which has no direction of its own.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def above(self, least: float) -> "Triples":
        """These, without what is below a singular value."""
        kept = self.values > least
        return Triples(self.left * kept, self.values * kept, self.right * kept)

    def product(self) -> Tensor:
        """The matrix of these triples, `(m, n)`."""
        return (self.left * self.values) @ self.right.mT


def leading_triples(matrix: Tensor, count: int) -> Triples:
    """The first `count` singular triples of a real matrix `(m, n)`, and no others."""
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = leading_triples(matrix.mT, count)
        return Triples(left, values, right)
    size = matrix.shape[1]
    narrow = matrix.dtype != torch.float64 and 2 * count < size
    working = matrix.to(torch.float32 if narrow else torch.float64)
    length = _length(working)
    if length == 0:
        left = torch.zeros(matrix.shape[0], count, dtype=torch.float64, device=matrix.device)
        return Triples(left, left.new_zeros(count), left.new_zeros(size, count))
    working = working if length == 1 else working / length
    basis = _largest_eigenvectors(_gram(working), min(count + _MORE, size))
    if narrow:
        basis = torch.linalg.qr(basis.to(torch.float64))[0]
    image = (working @ basis.to(working)).to(torch.float64)
    squares, turn = torch.linalg.eigh(image.mT @ image)
    squares, turn = squares.flip(0)[:count], turn.flip(1)[:, :count]
    known = squares > _NO_DIRECTION * squares[0]
    values = torch.where(known, squares.clamp(min=0).sqrt(), 0)
    inverse = torch.where(known, 1 / values, 0)
    return Triples(image @ (turn * inverse), values * length, basis @ (turn * known))


def polar(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`U V^T` of the thin decomposition `U S V^T`, and all singular values.

    It is the matrix with orthonormal columns (rows, if it is wide) nearest to the given one: the
    orthogonal Procrustes solution. Along directions in which the matrix is 0 any completion would
    be as near; they stay 0, so that the result does not depend on rounding.

    `(m, n)` and `(min(m, n),)`, the largest last, in float64. Of a matrix that is in float32, tall
    or wide, and far from singular (condition number below 10), in float32, with a relative error of
    about 3e-6.
    """
    if matrix.shape[0] < matrix.shape[1]:
        factor, values = polar(matrix.mT)
        return factor.mT, values
    # Square matrices have small singular values as a rule: no second attempt for these.
    if matrix.dtype == torch.float32 and len(matrix) >= 2 * matrix.shape[1] > 0:
        length = _length(matrix)
        working = matrix if length in (0, 1) else matrix / length
        squares, vectors = torch.linalg.eigh(_gram(working))
        if squares[0] > _CONDITIONED * squares[-1]:
            inverse = (vectors * squares.rsqrt()) @ vectors.mT
            return working @ inverse, squares.sqrt() * length
    return wide_polar(matrix)


def wide_polar(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """As `polar`, by a Gram matrix in float64: faster where float32 would not be enough.

    In float32 is here the factor of any such matrix with a condition number below 100.
    """
    if matrix.shape[0] < matrix.shape[1]:
        factor, values = wide_polar(matrix.mT)
        return factor.mT, values
    working = matrix.to(torch.float64)
    length = _length(working)
    if length == 0:
        return torch.zeros_like(working), working.new_zeros(working.shape[1])
    working = working if length == 1 else working / length
    squares, vectors = torch.linalg.eigh(_gram(working))
    squares = squares.clamp(min=0)
    inverse = torch.where(squares > _NO_DIRECTION * squares[-1], squares.rsqrt(), 0)
    # Half the time of the product, and as exact as the entries of the matrix are.
    if matrix.dtype == torch.float32 and squares[0] > _CONDITIONED_WIDE * squares[-1]:
        working = matrix if length == 1 else matrix / length
    turn = (vectors * inverse.sqrt()).to(working)
    return working @ (turn @ turn.mT), squares.sqrt() * length


def _length(matrix: Tensor) -> float:
    """The power of two to divide by, that no square vanishes or overflows; 0 for zeros."""
    if not matrix.numel():
        return 0.0
    least, most = torch.aminmax(matrix)
    length = max(-float(least), float(most))
    if length == 0 or _USUAL[0] < length < _USUAL[1]:
        return float(length > 0)
    return 2.0 ** (math.frexp(length)[1] - 1)


def _gram(matrix: Tensor) -> Tensor:
    """`matrix.mT @ matrix`, without the third of it that is known by symmetry."""
    size = matrix.shape[1]
    gram, width = matrix.new_empty(size, size), -(-size // 3)
    for start in range(0, size, width):
        stop = start + width
        gram[start:, start:stop] = matrix[:, start:].mT @ matrix[:, start:stop]
        gram[start:stop, stop:] = gram[stop:, start:stop].mT
    return gram


def _largest_eigenvectors(gram: Tensor, count: int) -> Tensor:
    """Those of a symmetric matrix `(n, n)`, `(n, count)`, in any order."""
    size = len(gram)
    if gram.device.type == "cpu" and 2 * count < size:
        from scipy.linalg import eigh

        found = eigh(
            gram.numpy(),
            subset_by_index=[size - count, size - 1],
            overwrite_a=True,
            check_finite=False,
        )
        return torch.from_numpy(found[1])
    return torch.linalg.eigh(gram).eigenvectors[:, size - count :]
