"""The types of numbers in weight files: their names, and conversion to float64 and back.

NumPy has no bfloat16 and no eight-bit floating-point types, but their bits are enough: a bfloat16
is the upper half of a float32, and eight bits index a table of 256 numbers. torch is not needed.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Raw = NDArray[np.uint8]
"""The bytes of a tensor as they lie in memory, of shape `(n,)`."""

Wide = NDArray[np.float64]

SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("F8_E5M2FNUZ", "F8_E4M3FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32", "C32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
    "C128": 16,
}
"""Bytes of one number, by the name that safetensors has for its type (or would have)."""

_NAMES = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "C32": "complex32",
    "C64": "complex64",
    "C128": "complex128",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
CODES = {name: code for code, name in _NAMES.items()}
_PARTS = {"C32": "F16", "C64": "F32", "C128": "F64"}
_HALVES = ("F16", "BF16")


def type_name(code: str) -> str:
    """The name that torch gives a type: `float32` for `F32`."""
    return _NAMES.get(code, code)


def is_complex(code: str) -> bool:
    """Whether numbers of this type are complex."""
    return code in _PARTS


def is_fraction(code: str) -> bool:
    """Whether numbers of this type can be averaged: floating-point and complex ones."""
    return code in _PARTS or (code in SIZES and code[0] in "FB" and code != "BOOL")


def real_part(code: str) -> str:
    """The type of a complex number's two parts; any other type is returned unchanged."""
    return _PARTS.get(code, code)


def common_type(codes: list[str]) -> str:
    """The narrowest type that represents all numbers of some floating-point types."""
    kinds = set(codes)
    if len(kinds) == 1:
        return codes[0]
    for widest in ("F64", "F32"):
        if widest in kinds:
            return widest
    halves = kinds & set(_HALVES)
    if len(halves) == 1:
        # A 16-bit type represents all numbers of the eight-bit types, except for E8M0's range.
        return "F32" if "F8_E8M0" in kinds else halves.pop()
    return "F32"


def widened(raw: Raw, code: str) -> NDArray[np.generic]:
    """Numbers as float32 or float64, without a copy if NumPy has their type.

    Args:
        raw: Their bytes.
        code: A real floating-point type.
    """
    if code == "F32":
        return raw.view(np.float32)
    if code == "F64":
        return raw.view(np.float64)
    if code == "F16":
        return raw.view(np.float16).astype(np.float32)
    if code == "BF16":
        bits = raw.view(np.uint16).astype(np.uint32)
        return np.left_shift(bits, 16, out=bits).view(np.float32)
    return _eight_bits(code)[raw]


def narrowed(values: Wide, code: str, scratch: NDArray[np.float32] | None = None) -> Raw:
    """Rounds float64 to a type as torch does: to float32 first, then to anything narrower.

    Each step rounds to nearest, ties to even. A number beyond the range of the real floating-point
    type becomes infinite, or NaN if the type has no infinity. `values` are `(n,)`; `scratch` is
    memory for the float32 numbers, allocated if not given.
    """
    if code == "F64":
        return values.view(np.uint8)
    single = np.empty(len(values), np.float32) if scratch is None else scratch[: len(values)]
    np.copyto(single, values, casting="same_kind")
    if code == "F32":
        return single.view(np.uint8)
    if code == "F16":
        return single.astype(np.float16).view(np.uint8)
    if code == "BF16":
        bits = single.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
        rounded[np.isnan(single)] = 0x7FC0
        return rounded.astype(np.uint16).view(np.uint8)
    return _nearest_of_eight_bits(single, code)


def not_finite(raw: Raw, code: str) -> NDArray[np.bool_]:
    """Where numbers are NaN or infinite."""
    if code == "BF16":
        return (raw.view(np.uint16) & 0x7F80) == 0x7F80
    if code == "F16":
        return (raw.view(np.uint16) & 0x7C00) == 0x7C00
    return ~np.isfinite(widened(raw, code))


@lru_cache
def _eight_bits(code: str) -> Wide:
    """The numbers of an eight-bit type, `(256,)`, indexed by their bits."""
    import torch

    dtype = getattr(torch, type_name(code))
    bits = torch.arange(256, dtype=torch.uint8)
    return bits.view(dtype).to(torch.float64).numpy()


def _nearest_of_eight_bits(values: NDArray[np.float32], code: str) -> Raw:
    table = _eight_bits(code)
    signed = bool((table < 0).any())
    codes = np.flatnonzero(np.isfinite(table) & ~np.signbit(table))
    codes = codes[np.argsort(table[codes])]
    numbers = table[codes]
    size = np.abs(values)
    above = np.searchsorted(numbers, size).clip(1, len(numbers) - 1)
    from_low, to_high = size - numbers[above - 1], numbers[above] - size
    up = (from_low > to_high) | ((from_low == to_high) & (codes[above] % 2 == 0))
    nearest = codes[np.where(up, above, above - 1)]
    if signed:
        # Some types have no negative zero.
        negative = np.signbit(values) & ~np.isnan(table[nearest | 0x80])
        nearest = np.where(negative, nearest | 0x80, nearest)
    limit = numbers[-1] + (numbers[-1] - numbers[-2]) / 2
    beyond = ~(size < limit) | ((values < numbers[0]) & (not signed))
    nan = np.flatnonzero(np.isnan(table))[0]
    infinite = np.flatnonzero(np.isinf(table))
    lost = np.full_like(nearest, nan)
    if len(infinite):
        lost = np.where(np.isnan(values), nan, np.where(values > 0, infinite[0], infinite[-1]))
    return np.where(beyond, lost, nearest).astype(np.uint8)
