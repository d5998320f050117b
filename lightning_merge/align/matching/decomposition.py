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

    Raises:
        torch.linalg.LinAlgError: If a number is not finite.
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

    flat = matrix.detach().reshape(-1, *matrix.shape[-2:]).cpu().numpy()
    u, values, vt = (
        torch.from_numpy(np.stack(part)).to(matrix).reshape(*matrix.shape[:-2], *part[0].shape)
        for part in zip(*(lapack(one, lapack_driver="gesvd") for one in flat), strict=True)
    )
    return u, values, vt
