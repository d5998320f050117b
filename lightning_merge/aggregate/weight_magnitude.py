"""Where to cut many tensors so that a share of their elements stays, without sorting them.

A radix selection: the bit pattern of a non-negative floating-point number, read as an
integer, orders as the number does. Counting its digits of 16 bits, from the highest down,
finds the k-th largest exactly in as many passes as there are digits, in a fixed amount of
memory; `kthvalue` on the joined tensors would need several copies of them.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

_BLOCK = 1 << 18
_DIGIT = 16
_VALUES = 1 << _DIGIT


def smallest_kept_magnitude(tensors: Callable[[], Iterable[Tensor]], density: float) -> float:
    """The k-th largest absolute value of n elements, with `k = round(density * n)`, at least 1.

    At least k elements are as large, fewer than k are larger; 0 if there is no element. `tensors`,
    of floating-point types, is called three times (five with float64 among them), and one tensor is
    in use at a time. `density` is in (0, 1].
    """
    sizes = [(tensor.numel(), tensor.dtype == torch.float64) for tensor in tensors()]
    n = sum(size for size, _ in sizes)
    if n == 0:
        return 0.0
    dtype, pattern, width = torch.float32, torch.int32, 32
    if any(double for _, double in sizes):
        dtype, pattern, width = torch.float64, torch.int64, 64
    rank, prefix = max(1, round(density * n)), 0
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        counts = torch.zeros(_VALUES, dtype=torch.int64)
        for piece in _pieces(tensors()):
            head = piece.to(dtype).abs().view(pattern) >> shift
            digits = head & (_VALUES - 1)
            if shift + _DIGIT < width:
                digits = digits[head >> _DIGIT == prefix]
            counts += torch.bincount(digits, minlength=_VALUES).cpu()
        from_above = counts.flip(0).cumsum(0)
        position = int(torch.searchsorted(from_above, rank))
        digit = _VALUES - 1 - position
        rank -= int(from_above[position] - counts[digit])
        prefix = prefix << _DIGIT | digit
    return float(torch.tensor(prefix, dtype=pattern).view(dtype))


def _pieces(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    # Small ones: what is counted then stays in the processor's cache.
    for tensor in tensors:
        yield from tensor.detach().reshape(-1).split(_BLOCK)
