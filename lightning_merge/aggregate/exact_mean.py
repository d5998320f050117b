"""The weighted mean of arrays of numbers, block by block: the arithmetic of every average.

Numbers of up to 32 bits are summed in float64 and rounded as torch rounds; float64 itself is
summed in twice its precision. The order of the ingredients changes no bit of the result, since
each span is summed in an order that follows from the weights and the bytes alone. Nothing here
needs torch.
"""

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from lightning_merge.errors import NonFiniteError
from lightning_merge.number_types import (
    SIZES,
    Raw,
    Wide,
    narrowed,
    not_finite,
    real_part,
    type_name,
    widened,
)
from lightning_merge.tensor_names import is_running_variance

# How many numbers are worked on at a time: their sums stay in a core's own cache.
_BLOCK = 1 << 16
SPAN = 1 << 21
"""How many numbers are added in one order."""


class _Scratch(threading.local):
    """Memory that is new costs more than what is computed in it: each thread keeps its own."""

    def __init__(self) -> None:
        self.sum = np.empty(_BLOCK, np.float64)
        self.part = np.empty(_BLOCK, np.float64)
        self.rounded = np.empty(_BLOCK, np.float32)


_scratch = _Scratch()

# Multiplying by these is exact, and takes a third of the time of dividing.
_RECIPROCALS = {2.0**power: 2.0**-power for power in range(8)}

# Products of numbers between these neither overflow nor lose their last bits.
_SMALL, _LARGE = 2.0**-400, 2.0**400
_SPLIT = 2.0**27 + 1


class Mean:
    """The mean of one tensor over K ingredients.

    Args:
        where: The tensor's name.
        raws: Its bytes in each ingredient.
        codes: Its types there, all real floating-point or all complex.
        weights: K finite numbers whose sum is not 0.
        names: What to call the ingredients in an error.
        code: The type of the result.
    """

    def __init__(
        self,
        where: str,
        raws: Sequence[Raw],
        codes: Sequence[str],
        weights: Sequence[float],
        names: Sequence[str],
        code: str,
    ) -> None:
        self._where, self._raws, self._names = where, list(raws), list(names)
        # A complex number's parts are averaged each by itself, which is exact.
        self._codes = [real_part(one) for one in codes]
        self._code = real_part(code)
        self._weights = list(weights)
        both_signs = min(weights) < 0 < max(weights)
        self._extrapolates_variance = both_signs and is_running_variance(where)
        self.size = len(self._raws[0]) // SIZES[self._codes[0]]
        self.bytes_of_one = SIZES[self._code]

    def blocks(self, start: int) -> Iterator[tuple[int, Raw]]:
        """A span of the result from the number `start` on, a multiple of `SPAN`, block by block.

        Yields where a block begins, in bytes, and its bytes, which are good until the next one; a
        `NonFiniteError` if an ingredient holds NaN, or infinity where not all hold the same, or the
        result is beyond its type's range, or a variance below 0.
        """
        stop = min(start + SPAN, self.size)
        order = self._order(self._pieces(range(len(self._raws)), start, stop))
        weights = [self._weights[k] for k in order]
        precise = "F64" in (*self._codes, self._code)
        for begin in range(start, stop, _BLOCK):
            pieces = self._pieces(order, begin, min(begin + _BLOCK, stop))
            numbers = [
                widened(piece, self._codes[k]) for k, piece in zip(order, pieces, strict=True)
            ]
            with np.errstate(all="ignore"):
                mean = _precise_mean(numbers, weights) if precise else _mean(numbers, weights)
                rounded = narrowed(mean, self._code, _scratch.rounded)
                odd = not_finite(rounded, self._code)
            if self._extrapolates_variance and (mean < 0).any():
                raise NonFiniteError(
                    f"'{self._where}' is a variance, and its mean is negative, which makes the "
                    "outputs NaN; choose weights that are closer to each other"
                )
            if odd.any():
                rounded = self._with_constants(rounded, odd, order, numbers)
            yield begin * self.bytes_of_one, rounded

    def _pieces(self, order: Iterable[int], start: int, stop: int) -> list[Raw]:
        sizes = [SIZES[code] for code in self._codes]
        return [self._raws[k][start * sizes[k] : stop * sizes[k]] for k in order]

    def _order(self, pieces: Sequence[Raw]) -> list[int]:
        """Which to add first: a rule that does not see in which order they were given."""

        def keys(length: int | None) -> list[tuple[float, str, bytes]]:
            begins = (piece[:length].tobytes() for piece in pieces)
            return list(zip(self._weights, self._codes, begins, strict=True))

        order = keys(64)
        if len(set(order)) < len(order):
            order = keys(None)
        return sorted(range(len(pieces)), key=order.__getitem__)

    def _with_constants(
        self,
        rounded: Raw,
        odd: NDArray[np.bool_],
        order: Sequence[int],
        numbers: Sequence[NDArray[np.generic]],
    ) -> Raw:
        at = np.flatnonzero(odd)
        values = [number[at].astype(np.float64) for number in numbers]
        same = np.isinf(values[0]) & np.all([value == values[0] for value in values], axis=0)
        for value, k in zip(values, order, strict=True):
            if not np.isfinite(value[~same]).all():
                raise NonFiniteError(
                    f"{self._names[k]}: '{self._where}' holds NaN or infinity; leave this "
                    "checkpoint out"
                )
        kept = narrowed(values[0][same], self._code)
        if not same.all() or not np.isinf(widened(kept, self._code)).all():
            raise NonFiniteError(
                f"'{self._where}' is beyond the range of {type_name(self._code)}; choose weights "
                "that are closer, or a wider type (average: --dtype float32)"
            )
        rounded = rounded.copy()
        rounded.reshape(-1, self.bytes_of_one)[at] = kept.reshape(-1, self.bytes_of_one)
        return rounded


def _mean(numbers: Sequence[NDArray[np.generic]], weights: Sequence[float]) -> Wide:
    """Numbers of up to 32 bits; equal weights must be neighbours."""
    total: Wide | None = None
    alike = [list(group) for _, group in groupby(range(len(weights)), key=weights.__getitem__)]
    for group in alike:
        part = (_scratch.sum if total is None else _scratch.part)[: len(numbers[0])]
        np.copyto(part, numbers[group[0]])
        for k in group[1:]:
            np.add(part, numbers[k], out=part)
        if len(alike) > 1:
            part *= weights[group[0]]
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    divisor = float(len(weights)) if len(alike) == 1 else math.fsum(weights)
    if divisor in _RECIPROCALS:
        total *= _RECIPROCALS[divisor]
    else:
        total /= divisor
    return total


def _precise_mean(numbers: Sequence[NDArray[np.generic]], weights: Sequence[float]) -> Wide:
    """The same with sums, products and quotient of about 100 bits."""
    values = [number.astype(np.float64) for number in numbers]
    sizes = np.abs(np.max([np.abs(value) for value in values], axis=0))
    exponents: NDArray[np.int32] | None = None
    if ((sizes > _LARGE) | ((sizes < _SMALL) & (sizes > 0))).any():
        exponents = np.frexp(sizes)[1]
        # In two steps: one alone could overflow.
        half = exponents // 2
        values = [np.ldexp(np.ldexp(value, -half), half - exponents) for value in values]
    if len(set(weights)) == 1:
        weights = [1.0] * len(weights)
    total = math.fsum(weights)
    rest = math.fsum([*weights, -total])
    high, low = np.zeros_like(sizes), np.zeros_like(sizes)
    for value, weight in zip(values, weights, strict=True):
        product, missing = (value, 0.0) if weight == 1 else _product(value, weight)
        high, error = _sum(high, product)
        low += error + missing
    mean = high / total
    product, missing = _product(mean, total)
    left = ((high - product) - missing) + (low - mean * rest)
    mean = np.where(np.isfinite(mean), mean + left / total, mean)
    if exponents is not None:
        half = exponents // 2
        mean = np.ldexp(np.ldexp(mean, half), exponents - half)
    return mean


def _sum(a: Wide, b: Wide) -> tuple[Wide, Wide]:
    """The sum and what its rounding lost (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _product(a: Wide, b: float) -> tuple[Wide, Wide]:
    """The product and what its rounding lost (Dekker, Veltkamp)."""
    product = a * b
    a_high = a * _SPLIT - (a * _SPLIT - a)
    b_high = b * _SPLIT - (b * _SPLIT - b)
    a_low, b_low = a - a_high, b - b_high
    lost = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, lost
