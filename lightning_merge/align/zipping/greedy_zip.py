"""Which units of two networks become one: the greedy matching of ZipIt!.

Source: Stoica et al. 2024, "ZipIt! Merging Models from Different Tasks without Training", Sec. 4.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Below every correlation: what is taken only where nothing else is left.
_LAST = 4.0


@dataclass(frozen=True)
class Zip:
    """Which of `n` clusters each of `2n` units goes into, those of a before those of b, `(2n,)`."""

    cluster: Tensor

    @property
    def size(self) -> int:
        """The number n of units that each network has."""
        return len(self.cluster) // 2

    def merge(self) -> tuple[Tensor, Tensor]:
        """`M_a` and `M_b`, `(n, n)` each: a merged unit is the mean of those in its cluster."""
        counts = self.cluster.bincount(minlength=self.size).double()
        one, other = self.unmerge()
        return one.T / counts[:, None], other.T / counts[:, None]

    def unmerge(self) -> tuple[Tensor, Tensor]:
        """`U_a` and `U_b`, `(n, n)` each: every unit is what its cluster is.

        `M_a U_a + M_b U_b` is the identity.
        """
        whole = torch.nn.functional.one_hot(self.cluster, self.size).double()
        return whole[: self.size], whole[self.size :]


def zip_units(correlation: Tensor, alpha: float = 0.3, beta: float = 0.125) -> Zip:
    """Merges the pair of units with the highest correlation, n times.

    Args:
        correlation: `(2n, 2n)`, of the units of both networks, a's first.
        alpha: By what a correlation is multiplied where one of the two has been merged already
            (its correlations are then the smallest ones of its units); 0 leaves it alone after
            that, so that all units become pairs.
        beta: The share of a network's merges that may be within it: `beta n / 2` of them. As in
            the authors' code, a merged unit counts as one of a's if it holds one of a's, whatever
            it holds of b's. Once they are spent, units that count as one network's are no longer
            merged with each other; with 0 the result is a permutation.
    """
    size = len(correlation) // 2
    similar = _Similarities(correlation.detach().cpu().double().numpy(), alpha)
    label = np.arange(2 * size)
    origin = np.repeat([0, 1], size)
    budget = [int(size / 2 * beta + 1e-4)] * 2
    for network in (0, 1):
        if not budget[network]:
            similar.defer_within(origin == network)
    for _ in range(size):
        kept, gone = similar.best()
        label[label == gone] = kept
        similar.merge(kept, gone)
        network = origin[kept]
        if origin[gone] == network and budget[network]:
            budget[network] -= 1
            if not budget[network]:
                similar.defer_within(origin == network)
    clusters = np.unique(label, return_inverse=True)[1]
    return Zip(torch.from_numpy(clusters.reshape(-1)))


class _Similarities:
    """Symmetric similarities; the best partner of each unit is known, and not searched anew."""

    def __init__(self, values: NDArray[np.float64], alpha: float) -> None:
        self.values, self.alpha = values.copy(), alpha
        np.fill_diagonal(self.values, -np.inf)
        self._search(np.arange(len(values)))

    def best(self) -> tuple[int, int]:
        """The pair with the highest similarity, in order."""
        row = int(self.highest.argmax())
        one, other = sorted((row, int(self.partner[row])))
        return one, other

    def merge(self, kept: int, gone: int) -> None:
        """Makes one unit of two."""
        row = np.minimum(self.values[kept], self.values[gone])
        if self.alpha:
            row = np.where(row > 0, self.alpha * row, row)
        else:
            row = np.where(row > -_LAST / 2, row - _LAST, row)
        row[kept] = -np.inf
        self.values[kept], self.values[:, kept] = row, row
        self.values[gone], self.values[:, gone] = -np.inf, -np.inf
        touched = np.isin(self.partner, (kept, gone))
        touched[[kept, gone]] = True
        self._search(np.flatnonzero(touched))

    def defer_within(self, members: NDArray[np.bool_]) -> None:
        """Pairs inside a network come last from now on."""
        units = np.flatnonzero(members)
        self.values[np.ix_(units, units)] -= 2 * _LAST
        self._search(units)

    def _search(self, units: NDArray[np.int64]) -> None:
        if len(units) == len(self.values):
            self.partner = self.values.argmax(axis=1)
            self.highest = self.values.max(axis=1)
            return
        self.partner[units] = self.values[units].argmax(axis=1)
        self.highest[units] = self.values[units, self.partner[units]]
