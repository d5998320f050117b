from fractions import Fraction
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_merge.number_types import CODES, common_type, narrowed, not_finite, widened

SMALL = ["bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz"]


def every_number(name):
    """All finite numbers of a type, by torch."""
    dtype = getattr(torch, name)
    bits = torch.arange(256, dtype=torch.uint8)
    if dtype.itemsize == 2:
        bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype).double()
    return bits[values.isfinite()], values[values.isfinite()]


@pytest.mark.parametrize("name", [*SMALL, "float16", "float8_e8m0fnu"])
def test_every_number_of_a_type_comes_back(name):
    bits, values = every_number(name)
    raw = bits.numpy().view(np.uint8)
    code = CODES[name]
    assert np.array_equal(widened(raw, code), values.numpy())
    assert np.array_equal(narrowed(values.numpy(), code), raw)
    assert not not_finite(raw, code).any()


@lru_cache
def magnitudes(name):
    return every_number(name)[1].abs().unique().tolist()


@pytest.mark.parametrize("name", SMALL)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_rounding_goes_to_the_nearest_and_of_two_to_the_even_one(name, data):
    numbers = magnitudes(name)
    low = data.draw(st.integers(0, len(numbers) - 2))
    a, b = numbers[low : low + 2]
    sign = data.draw(st.sampled_from([1, -1]))
    part = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.5 - 2**-10, 0.5 + 2**-10, 0.75]))
    x = a + (b - a) * part
    raw = narrowed(np.array([sign * x]), CODES[name])
    found = sign * Fraction(float(widened(raw, CODES[name])[0]))
    to_a, to_b = Fraction(x) - Fraction(a), Fraction(b) - Fraction(x)
    if to_a == to_b:
        assert found in (a, b)
        assert raw[0] % 2 == 0
    else:
        assert found == (a if to_a < to_b else b)


@pytest.mark.parametrize("name", [*SMALL, "float16"])
def test_what_is_beyond_the_range_is_seen(name):
    code = CODES[name]
    with np.errstate(all="ignore"):
        raw = narrowed(np.array([1e39, -1e39, np.nan, np.inf]), code)
    assert not_finite(raw, code).all()


def test_the_common_type_does_not_depend_on_the_order():
    assert common_type(["F16", "BF16"]) == common_type(["BF16", "F16"]) == "F32"
    assert common_type(["F16", "F32"]) == common_type(["F32", "F16"]) == "F32"
    assert common_type(["F8_E4M3", "BF16"]) == "BF16"
    assert common_type(["F64", "F8_E5M2"]) == "F64"


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_numbers_are_rounded_as_torch_rounds_them(name):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1 << 18, generator=generator).double() / 3
    values *= 10.0 ** torch.randint(-12, 5, values.shape, generator=generator)
    raw = torch.from_numpy(narrowed(values.numpy(), CODES[name]))
    assert torch.equal(raw.view(getattr(torch, name)), values.to(getattr(torch, name)))
