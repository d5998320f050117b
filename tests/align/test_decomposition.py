"""Singular values that repeat, and a routine that gives up on them."""

import pytest
import torch

from lightning_merge.align.matching import decomposition
from lightning_merge.align.matching.decomposition import svd


def repeated(n, rank, seed):
    """A product of two projections, whose singular values are 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    return q[:, :rank] @ q[:, :rank].T


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_factors_give_the_matrix_whatever_the_routine(fails, shape, dtype, monkeypatch):
    def gives_up(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    if fails:
        monkeypatch.setattr(decomposition.torch.linalg, "svd", gives_up)
    count = torch.Size(shape).numel()
    matrices = [repeated(9, 4, seed)[:, :7] for seed in range(count)]
    matrix = torch.stack(matrices).reshape(*shape, 9, 7).to(dtype)
    u, values, vt = svd(matrix)
    assert (u.shape, vt.shape) == ((*shape, 9, 9), (*shape, 7, 7))
    assert all(part.dtype == dtype for part in (u, values, vt))
    for one in (u, vt):
        eye = torch.eye(one.shape[-1], dtype=dtype).expand_as(one)
        torch.testing.assert_close(one @ one.mT, eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(u[..., :7] * values[..., None, :] @ vt, matrix, atol=1e-5, rtol=0)
    assert (values.diff() <= 0).all()


@pytest.mark.parametrize("n", [64, 195, 500])
def test_projections_are_decomposed_on_every_machine(n):
    for seed in range(5):
        matrix = repeated(n, n // 2, seed)
        u, values, vt = svd(matrix)
        torch.testing.assert_close(u * values @ vt, matrix, atol=1e-10, rtol=0)
        expected = torch.arange(n) < n // 2
        torch.testing.assert_close(values, expected.double(), atol=1e-10, rtol=0)


def test_no_numbers_are_still_an_error():
    with pytest.raises(torch.linalg.LinAlgError):
        svd(torch.full((3, 3), torch.nan, dtype=torch.float64))
