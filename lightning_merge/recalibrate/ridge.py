"""Ridge regression of many rows, from sums over them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGES = (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4)


@dataclass
class Sums:
    """What regression reads of rows `x` and their goals `t`, for G groups of columns.

    `inputs` is `sum x x^T`, `(G, d, d)`, `goals` is `sum x t^T`, `(G, d, o)`, both in float64.
    """

    inputs: Tensor
    goals: Tensor
    rows: int

    @classmethod
    def of(cls, x: Tensor, t: Tensor) -> "Sums":
        """Of rows `(G, n, d)` and goals `(G, n, o)`."""
        return cls(x.mT @ x, x.mT @ t, x.shape[1])

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.inputs + other.inputs, self.goals + other.goals, self.rows + other.rows)

    def error(self, weights: Tensor) -> Tensor:
        """`sum |x W - t|^2` but for a constant."""
        return ((self.inputs @ weights - 2 * self.goals) * weights).sum()


def regressed(fit: Sums, check: Sums, start: Tensor, constant: bool) -> Tensor:
    """The weights that map rows to their goals, pulled to those that there are.

    How strongly is chosen on rows that are not fitted, so that a few examples change little:
    among penalties of 1e-6 to 1e4 times the mean square of an input, from the weakest on, until a
    stronger one does worse. All rows are fitted with it in the end.

    `start` are the present weights, `(G, d, o)`; with `constant` the last input is 1 everywhere,
    and its weight free.
    """
    free = torch.ones_like(fit.inputs[0].diagonal())
    if constant:
        free[-1] = 0
    chosen, least = _RIDGES[0], math.inf
    for ridge in _RIDGES:
        error = float(check.error(_solve(fit, start, ridge, free)))
        if error > least:
            break
        chosen, least = ridge, error
    return _solve(fit + check, start, chosen, free)


def _solve(sums: Sums, start: Tensor, ridge: float, penalised: Tensor) -> Tensor:
    diagonal = sums.inputs.diagonal(dim1=-2, dim2=-1)
    scale = (diagonal * penalised).sum(dim=-1, keepdim=True) / penalised.sum().clamp_min(1)
    # Inputs that are always zero leave no other pivot than this.
    scale = torch.where(scale > 0, scale, 1.0)
    matrix = sums.inputs.clone()
    matrix.diagonal(dim1=-2, dim2=-1).add_(scale * (ridge * penalised + 1e-12))
    change = torch.cholesky_solve(sums.goals - sums.inputs @ start, torch.linalg.cholesky(matrix))
    return start + change
