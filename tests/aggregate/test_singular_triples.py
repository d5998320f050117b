"""Singular triples and polar factors of matrices whose singular values are known."""

import math

import pytest
import torch
from known_values import rotation, svd, with_values

from lightning_merge.aggregate.singular_triples import leading_triples, polar, wide_polar


@pytest.mark.parametrize("shape", [(300, 200), (150, 400)])
def test_few_triples_of_float32_are_as_good_as_a_full_decomposition(shape):
    values = torch.logspace(0, -3, min(shape), dtype=torch.float64)
    matrix = with_values(shape, values).float()
    found = leading_triples(matrix, 20)
    torch.testing.assert_close(found.values, values[:20], rtol=1e-6, atol=0)
    u, s, vh = svd(matrix.double())
    best = u[:, :20] @ torch.diag(s[:20]) @ vh[:20]
    assert float((found.product() - best).norm() / best.norm()) < 1e-5
    identity = torch.eye(20, dtype=torch.float64)
    torch.testing.assert_close(found.left.T @ found.left, identity, rtol=0, atol=1e-9)


def test_the_last_triple_may_be_near_the_next_one():
    values = torch.linspace(0.09, 0.03, 120, dtype=torch.float64)
    values[:8] = 3.0
    values[20:] *= values[19] * (1 - 1e-4) / values[20]
    matrix = with_values((200, 120), values).float()
    found = leading_triples(matrix, 20)
    u, _, vh = svd(matrix.double())
    # Without their values, for a merge makes weak directions as strong as others.
    best = u[:, :20] @ vh[:20]
    assert float((found.left @ found.right.T - best).norm() / best.norm()) < 1e-3


@pytest.mark.parametrize("length", [1e-30, 1e-3, 1e30])
def test_the_length_of_a_matrix_does_not_matter(length):
    matrix = (with_values((30, 20), range(20, 0, -1)) * length).float()
    found = leading_triples(matrix, 5)
    expected = torch.arange(20, 15, -1, dtype=torch.float64) * length
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("length", [1e-30, 1.0, 1e30])
def test_no_entry_need_be_positive(length):
    matrix = (-(torch.rand(60, 20) * (torch.rand(60, 20) > 0.3)) * length).float()
    u, s, vh = svd(matrix.double() / length)
    triples, (factor, values) = leading_triples(matrix, 5), polar(matrix)
    torch.testing.assert_close(triples.values / length, s[:5], rtol=1e-5, atol=0)
    torch.testing.assert_close(values.flip(0) / length, s, rtol=1e-4, atol=0, check_dtype=False)
    torch.testing.assert_close(factor, u @ vh, rtol=0, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_polar_is_orthonormal_only_where_there_is_something(shape):
    left, right = rotation(shape[0], 2), rotation(shape[1], 2)
    factor, values = polar(with_values(shape, [3.0, 0.5], left, right))
    torch.testing.assert_close(factor, left @ right.T)
    expected = torch.tensor([0, 0, 0.5, 3], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-7, atol=1e-7)
    assert not any(one.any() for one in polar(torch.zeros(shape)))


@pytest.mark.parametrize("shape", [(90, 30), (30, 90), (40, 30), (30, 30)])
@pytest.mark.parametrize("condition", [1.0, 1.01, 3.0, 9.0, 60.0, 1e3, 1e5])
@pytest.mark.parametrize("polar", [polar, wide_polar])
def test_polar_of_float32_has_five_digits_however_singular(shape, condition, polar):
    values = torch.logspace(0, -math.log10(condition), 30, dtype=torch.float64)
    matrix = with_values(shape, values).float()
    u, s, vh = svd(matrix.double())
    factor, found = polar(matrix)
    assert float((factor - u @ vh).norm() / len(values) ** 0.5) < 1e-5
    torch.testing.assert_close(found.double().flip(0), s, rtol=1e-5, atol=1e-6)
    for length in (2.0**-83, 2.0**83):
        again, longer = polar(matrix * length)
        torch.testing.assert_close(again, factor)
        torch.testing.assert_close(longer / length, found)
