"""The linear map between two sets of units by regularised canonical correlation analysis.

Source: Horoi et al. 2024, "Harmony in Diversity: Merging Neural Networks with Canonical
Correlation Analysis".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_merge.align.matching.assignment import assign
from lightning_merge.align.matching.decomposition import svd

# Products of units are summed in float32: variances below this share of the largest are rounding,
# which a whitening would blow up to a correlation like any other.
_ROUNDING = 2.0**-23
# In which directions two networks' units are unrelated.
_UNRELATED = 1e-9


@dataclass(frozen=True)
class LinearMap:
    """A linear map of units and its inverse, `(n, n)` each, float64.

    Observations `y` of b's units, as rows, become `y @ forward`.
    """

    forward: Tensor
    inverse: Tensor


class Spectra:
    """Covariances `(n, n)` of two sets of units, decomposed once for every gamma."""

    def __init__(self, s_aa: Tensor, s_ab: Tensor, s_bb: Tensor) -> None:
        self.varies = bool(s_aa.diagonal().sum() > 0 and s_bb.diagonal().sum() > 0)
        self.s_ab = s_ab.double()
        if self.varies:
            # Rounding leaves a covariance not quite symmetric.
            self.a, self.b = (torch.linalg.eigh((s + s.T).double() / 2) for s in (s_aa, s_bb))

    def linear_map(self, gamma: float) -> LinearMap:
        """The regularised CCA map of b's units onto a's.

        With `S~ = S + gamma mean(diag S) I` and `U s V' = svd(S~aa^-1/2 Sab S~bb^-1/2)` it is `T =
        S~bb^-1/2 V U' S~aa^1/2`. Without a ridge, directions that hardly vary make the map
        ill-conditioned. Those in which only rounding varies have no part in `Sab`. Units of which
        none varies, in either network, are left as they are.
        """
        if not self.varies:
            one = torch.eye(len(self.s_ab), dtype=torch.float64, device=self.s_ab.device)
            return LinearMap(one, one.clone())
        root_a, whiten_a, varying_a = _roots(self.a, gamma)
        root_b, whiten_b, varying_b = _roots(self.b, gamma)
        rotation = _rotation(varying_a @ self.s_ab @ varying_b)
        return LinearMap(whiten_b @ rotation @ root_a, whiten_a @ rotation.T @ root_b)


def _rotation(correlations: Tensor) -> Tensor:
    """`V U'` of `U s V'`; where `s` is 0, the rotation nearest to the best permutation is taken.

    Else units that never vary together would be mixed at random or turned round, in equal
    networks as well: units that a ReLU silences would speak.
    """
    u, values, vt = svd(correlations)
    free = values <= _UNRELATED
    if free.any():
        # Units of which the data say nothing belong to such units; of equals each to its own.
        silent = torch.outer(u[:, free].square().sum(1), vt[free].square().sum(0))
        one = torch.eye(len(values), dtype=values.dtype, device=values.device)
        order, _ = assign(correlations + silent + _UNRELATED * one)
        p, _, q = svd(vt[free][:, order] @ u[:, free])
        vt[free] = q.T @ p.T @ vt[free]
    rotation: Tensor = vt.T @ u.T
    return rotation


def _roots(spectrum: tuple[Tensor, Tensor], gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """The square root of a regularised covariance, its inverse, and that where units vary.

    `(n, n)` each.
    """
    values, vectors = spectrum
    # A floor keeps the map invertible; rounding leaves eigenvalues below zero.
    floor = _ROUNDING * values[-1]
    root = (values.clamp_min(floor) + gamma * values.mean()).sqrt()
    inverse = vectors / root
    return (vectors * root) @ vectors.T, inverse @ vectors.T, inverse * (values > floor) @ vectors.T
