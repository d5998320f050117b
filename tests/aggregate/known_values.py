"""Matrices with known singular values, and their full decompositions."""

import torch


def svd(matrix):
    return torch.linalg.svd(matrix, full_matrices=False)


def rotation(rows, columns):
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64))[0]


def with_values(shape, values, left=None, right=None):
    """A matrix with known singular values."""
    values = torch.as_tensor(values, dtype=torch.float64)
    left = rotation(shape[0], len(values)) if left is None else left
    right = rotation(shape[1], len(values)) if right is None else right
    return left @ torch.diag(values) @ right.T
