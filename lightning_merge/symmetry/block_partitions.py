"""What moves when a block moves as a whole, and with what it must not be mixed up.

A unit may lie in several partitions at once: with grouped queries a unit of q lies in the
rows of its own head, and in the row of those units of several heads that share one unit of
k. Moving one block takes along every row that it covers, and must respect all others.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lightning_merge.trace.units import Ids

Hashes = npt.NDArray[np.uint64]


class Rows:
    """All rows of all partitions: which units each has, and which unit stands for it."""

    def __init__(
        self, rows: Sequence[tuple[Ids, Ids]], count: int, random: np.random.Generator
    ) -> None:
        self.count = count
        parents = [p for _, p in rows]
        self.parent = np.concatenate(parents) if parents else np.zeros(0, dtype=np.int64)
        none = [np.zeros(0, dtype=np.int64)]
        widths = np.concatenate([np.full(len(c), c.shape[1]) for c, _ in rows] or none)
        row = np.repeat(np.arange(len(self.parent)), widths)
        unit = np.concatenate([c.ravel() for c, _ in rows] or none)
        pairs = np.unique(row * count + unit)
        self.row, self.unit = pairs // max(count, 1), pairs % max(count, 1)
        self.width = np.bincount(self.row, minlength=len(self.parent))
        self.key: Hashes = random.integers(0, 2**64, size=count, dtype=np.uint64)
        self.token: Hashes = random.integers(0, 2**64, size=len(self.parent), dtype=np.uint64)
        hashes = np.zeros(len(self.parent), dtype=np.uint64)
        np.add.at(hashes, self.row, self.key[self.unit])
        self._by_hash = np.argsort(hashes)
        self._hashes = hashes[self._by_hash]
        self._by_unit = np.argsort(self.unit, kind="stable")
        self._units = self.unit[self._by_unit]
        self._by_parent = np.argsort(self.parent[self.row], kind="stable")
        self._parents = self.parent[self.row][self._by_parent]

    def colours(self) -> Hashes:
        """For each unit that stands for rows: the rows that it covers in part."""
        colour = np.zeros(self.count, dtype=np.uint64)
        owner, unit = self.parent[self.row], self.unit
        frontier = owner, unit
        for _ in range(4):
            at, pair = _join(frontier[1], self._parents, self._by_parent)
            if not len(at):
                break
            frontier = frontier[0][at], self.unit[pair]
            owner = np.concatenate([owner, frontier[0]])
            unit = np.concatenate([unit, frontier[1]])
        pairs = np.unique(owner * self.count + unit)
        owner, unit = pairs // max(self.count, 1), pairs % max(self.count, 1)
        at, pair = _join(unit, self._units, self._by_unit)
        rows = max(len(self.parent), 1)
        covered, times = np.unique(owner[at] * rows + self.row[pair], return_counts=True)
        owner, row = covered // rows, covered % rows
        part = times < self.width[row]
        weight = self.token[row[part]] * times[part].astype(np.uint64)
        np.add.at(colour, owner[part], weight)
        return colour

    def lifted(self, columns: Ids) -> Ids | None:
        """Units that stand for rows which lie wholly within each row of `columns`.

        They are `(len(columns), any)`, in corresponding order; None where they do not correspond.
        """
        at, pair = _join(columns[0], self._units, self._by_unit)
        row, times = np.unique(self.row[pair], return_counts=True)
        whole = row[times == self.width[row]]
        whole = whole[~np.isin(self.parent[whole], columns[0])]
        found = []
        for one in whole.tolist():
            places = at[self.row[pair] == one]
            hashes = self.key[columns[:, places]].sum(axis=1, dtype=np.uint64)
            index = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
            if (self._hashes[index] != hashes).any():
                return None
            found.append(self.parent[self._by_hash[index]])
        return np.stack(found, axis=1) if found else columns[:, :0]


def _join(keys: Ids, ordered: Ids, order: Ids) -> tuple[Ids, Ids]:
    """All pairs of a place in `keys` and an entry of `order` that has the same key."""
    start = np.searchsorted(ordered, keys, side="left")
    counts = np.searchsorted(ordered, keys, side="right") - start
    at = np.repeat(np.arange(len(keys)), counts)
    first = np.repeat(start - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    return at, order[(np.arange(int(counts.sum())) + first).astype(np.int64)]
