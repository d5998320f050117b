"""Singular value decomposition that does not fail where singular values repeat."""

import numpy as np
import torch
from torch import Tensor


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The full decomposition `u, values, vt` of a matrix of finite numbers.

    Divide and conquer, as torch does it on a CPU, gives up on some matrices of projections (oneMKL,
    by processor); QR iterations are slower, and do not.

    Args:
        matrix: `(..., m, n)`.

    Returns:
        `(..., m, m)`, `(..., min(m, n))` in descending order, and `(..., n, n)`.
    """
    try:
        u, values, vt = torch.linalg.svd(matrix)
    except torch.linalg.LinAlgError:
        if not matrix.isfinite().all():
            raise
        return _by_iterations(matrix)
    return u, values, vt


def _by_iterations(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from scipy.linalg import svd as lapack

    flat = matrix.reshape(-1, *matrix.shape[-2:]).cpu().numpy()
    parts = zip(*(lapack(one, lapack_driver="gesvd") for one in flat), strict=True)
    u, values, vt = (
        torch.from_numpy(np.stack(part)).to(matrix).unflatten(0, matrix.shape[:-2])
        if matrix.dim() > 2
        else torch.from_numpy(part[0]).to(matrix)
        for part in parts
    )
    return u, values, vt
