"""From units to groups: which units may be exchanged, and what moves with them.

Two units may be exchanged if they reach the same axes of the same tensors and belong to
the same blocks. Blocks may be exchanged as wholes if their units correspond one to one.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_merge.symmetry.block_partitions import Rows
from lightning_merge.trace.deadline import Deadline
from lightning_merge.trace.trace import Trace
from lightning_merge.trace.units import Ids

Hashes = npt.NDArray[np.uint64]


@dataclass
class Found:
    """A set of interchangeable units.

    Attributes:
        columns: Units, `(size, slots)`: row `i` is everything that moves with unit `i`.
        blocks: Into how many runs of equal length the rows are divided; a permutation may
            exchange rows within a run only.
        places: `(slot number, positions)` with positions `(size, repeat)`, flat within the
            slot's axes.
        wholes: Whether each row is a block that carries other units.
        name: What the units are, where a rule names them.
    """

    columns: Ids
    blocks: int
    places: list[tuple[int, Ids]]
    wholes: bool
    name: str


class _Facts:
    """All that was learned about the units, reduced to representatives."""

    def __init__(self, trace: Trace) -> None:
        self.random = np.random.default_rng(0x5EED)
        units = trace.units
        self.slots = trace.slots
        self.pieces = units.pieces
        self.roots = _close(trace)
        count = units.count
        self.frozen = np.zeros(count, dtype=bool)
        for held in units.frozen:
            self.frozen[self.roots[held.ids]] = True
        self.rows = [(self.roots[b.children], self.roots[b.parents]) for b in units.blocks]
        self.partitions = Rows(self.rows, count, self.random)
        self._freeze_blocks()
        self._index_positions()
        self._hash()
        self.names: dict[int, str] = {}
        for ids, name in units.names:
            self.names.update(dict.fromkeys(self.roots[ids].tolist(), name))

    def _freeze_blocks(self) -> None:
        """A block with a frozen unit that others do not share cannot move as a whole."""
        changed = True
        while changed:
            before = int(self.frozen.sum())
            for children, parents in self.rows:
                shared = (children == children[:1]).all(axis=0)
                held = (self.frozen[children] & ~shared).any(axis=1)
                self.frozen[parents[held]] = True
            changed = int(self.frozen.sum()) != before

    def _index_positions(self) -> None:
        """Sort all positions of all slots by unit, to look up where a unit lies."""
        sizes = [slot.ids.size for slot in self.slots]
        self.slot_of = np.repeat(np.arange(len(sizes)), sizes)
        self.position_of = np.concatenate([np.arange(s) for s in sizes] or [np.zeros(0, int)])
        flat = [self.roots[slot.ids.ravel()] for slot in self.slots]
        unit_of = np.concatenate(flat) if flat else np.zeros(0, dtype=np.int64)
        self.by_unit = np.argsort(unit_of, kind="stable")
        self.unit_sorted = unit_of[self.by_unit]
        self.unit_of = unit_of

    def _hash(self) -> None:
        """Signatures (what a unit reaches) and colours (which blocks it belongs to)."""
        count = len(self.roots)

        def draw(size: int) -> Hashes:
            return self.random.integers(0, 2**64, size=size, dtype=np.uint64)

        signature = np.zeros(count, dtype=np.uint64)
        colour = np.zeros(count, dtype=np.uint64)
        np.add.at(signature, self.unit_of, draw(len(self.slots))[self.slot_of])
        for ids, token in zip(self.pieces, draw(len(self.pieces)), strict=True):
            signature[np.unique(self.roots[ids])] += token
        for children, parents in self.rows:
            as_child, as_parent = draw(2)
            np.add.at(signature, children.ravel(), as_child)
            np.add.at(signature, parents, as_parent)
            row = draw(len(children))
            np.add.at(colour, children, np.broadcast_to(row[:, None], children.shape))
        colour += self.partitions.colours()
        # A block is also what its units are.
        for _ in range(2):
            grown = signature.copy()
            for children, parents in self.rows:
                mixed = (signature[children] * np.uint64(0x9E3779B97F4A7C15)).sum(
                    axis=1, dtype=np.uint64
                )
                np.add.at(grown, parents, mixed)
            signature = grown
        self.signature, self.colour = signature, colour


def _close(trace: Trace) -> Ids:
    """Representatives, after tying blocks that consist of the same units."""
    units = trace.units
    random = np.random.default_rng(1)
    while True:
        roots = units.roots()
        key = random.integers(0, 2**64, size=units.count, dtype=np.uint64)
        hashes = [_hash_of_set(key, roots[b.children]) for b in units.blocks]
        if not hashes:
            return roots
        parents = np.concatenate([b.parents for b in units.blocks])
        _, first, inverse = np.unique(
            np.concatenate(hashes), return_index=True, return_inverse=True
        )
        same = parents[first][inverse.ravel()]
        if (roots[same] == roots[parents]).all():
            return roots
        units.tie(same, parents)


def _hash_of_set(key: Hashes, rows: Ids) -> Hashes:
    """A hash of the different units in each row, however often each is there."""
    ordered = np.sort(rows, axis=1)
    keys = key[ordered]
    keys[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = 0
    total: Hashes = keys.sum(axis=1, dtype=np.uint64)
    return total


def find_groups(trace: Trace, deadline: Deadline) -> tuple[list[Found], Ids]:
    """All groups of a network, outermost first, and the representative of each unit."""
    facts = _Facts(trace)
    is_root = facts.roots == np.arange(len(facts.roots))
    reaches = np.zeros(len(facts.roots), dtype=bool)
    reaches[facts.unit_of] = True
    parents = np.zeros(len(facts.roots), dtype=bool)
    for _, block_parents in facts.rows:
        parents[block_parents] = True
    candidates = np.flatnonzero(is_root & ~facts.frozen & (reaches | parents))
    buckets: dict[int, list[int]] = {}
    for unit in candidates.tolist():
        buckets.setdefault(int(facts.signature[unit]), []).append(unit)
    found = []
    for members in buckets.values():
        deadline.check("finding the groups")
        found.extend(_divide(facts, np.array(members, dtype=np.int64), parents))
    found.sort(key=lambda group: (not group.wholes, int(group.columns.min())))
    return _different(found), facts.roots


def _different(found: list[Found]) -> list[Found]:
    """Without groups of blocks that move what an earlier one moves, in the same rows."""
    kept: list[Found] = []
    moved: set[tuple[int, frozenset[frozenset[tuple[int, int]]]]] = set()
    for one in found:
        if one.wholes:
            rows = [
                frozenset((slot, at) for slot, places in one.places for at in places[row].tolist())
                for row in range(len(one.columns))
            ]
            moves = one.blocks, frozenset(rows)
            if moves in moved:
                continue
            moved.add(moves)
        kept.append(one)
    return kept


def _divide(facts: _Facts, members: Ids, parents: npt.NDArray[np.bool_]) -> list[Found]:
    """Divide units of one signature into blocks of one colour, and those by their size."""
    colours, first, inverse = np.unique(
        facts.colour[members], return_index=True, return_inverse=True
    )
    inverse = inverse.ravel()
    sizes = np.bincount(inverse, minlength=len(colours))
    found = []
    for size in np.unique(sizes[sizes > 1]).tolist():
        chosen = [c for c in np.argsort(first) if sizes[c] == size]
        units = np.concatenate([members[inverse == c] for c in chosen])
        columns = _columns(facts, units, parents)
        if columns is not None:
            columns = _lifted(facts, columns, parents)
        if columns is None:
            continue
        places = _places(facts, columns)
        if places is None or not places:
            continue
        wholes = bool(parents[units].any())
        name = facts.names.get(int(units[0]), "")
        found.append(Found(columns, len(chosen), places, wholes, name))
    return found


def _columns(
    facts: _Facts, units: Ids, parents: npt.NDArray[np.bool_], depth: int = 0
) -> Ids | None:
    """What moves with each unit: itself and, for blocks, their units in corresponding order.

    They are `(len(units), slots)`, or None where the blocks do not correspond.
    """
    columns = units[:, None]
    if not parents[units].any() or depth > 4:
        return columns
    row_of = np.full(len(facts.roots), -1, dtype=np.int64)
    row_of[units] = np.arange(len(units))
    for children, block_parents in facts.rows:
        rows = row_of[block_parents]
        mine = rows >= 0
        if not mine.any():
            continue
        counts = np.bincount(rows[mine], minlength=len(units))
        if counts.min() != counts.max():
            return None
        order = np.argsort(rows[mine], kind="stable")
        block = children[mine][order].reshape(len(units), -1)
        columns = np.concatenate([columns, block], axis=1)
    reduced = _correspond(columns)
    if reduced is None:
        return None
    if (facts.signature[reduced] != facts.signature[reduced[:1]]).any():
        return None
    nested = [reduced]
    for column in reduced.T[1:]:
        if parents[column].any():
            inner = _columns(facts, column, parents, depth + 1)
            if inner is None:
                return None
            nested.append(inner)
    return _correspond(np.concatenate(nested, axis=1)) if len(nested) > 1 else reduced


def _lifted(facts: _Facts, columns: Ids, parents: npt.NDArray[np.bool_]) -> Ids | None:
    """Take along what stands for units that all move, until there is no more."""
    for _ in range(4):
        more = facts.partitions.lifted(columns)
        if more is None or not more.shape[1]:
            return None if more is None else columns
        nested: list[Ids] = [columns]
        for column in more.T:
            inner = _columns(facts, column, parents)
            if inner is None:
                return None
            nested.append(inner)
        together = _correspond(np.concatenate(nested, axis=1))
        if together is None or together.shape[1] == columns.shape[1]:
            return together
        columns = together
    return columns


def _correspond(columns: Ids) -> Ids | None:
    """Drop repeated columns and those that all rows share; None where rows disagree."""
    shared = (columns == columns[:1]).all(axis=0)
    columns = columns[:, ~shared]
    first = _first_places(columns[0])
    # The same columns must repeat each other in every row.
    if any((_first_places(row) != first).any() for row in columns):
        return None
    kept = columns[:, np.unique(first)]
    return kept if len(np.unique(kept)) == kept.size else None


def _first_places(row: Ids) -> Ids:
    """For each entry the first place where it is."""
    _, first, inverse = np.unique(row, return_index=True, return_inverse=True)
    places: Ids = first[inverse.ravel()]
    return places


def _places(facts: _Facts, columns: Ids) -> list[tuple[int, Ids]] | None:
    """Where the rows lie: for each slot the positions of each row in corresponding order."""
    size, width = columns.shape
    flat = columns.ravel()
    start = np.searchsorted(facts.unit_sorted, flat, side="left")
    stop = np.searchsorted(facts.unit_sorted, flat, side="right")
    counts = stop - start
    if counts.sum() == 0:
        return []
    offset = np.repeat(start - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    where = facts.by_unit[np.arange(counts.sum()) + offset]
    rows = np.repeat(np.repeat(np.arange(size), width), counts)
    cols = np.repeat(np.tile(np.arange(width), size), counts)
    slots, positions = facts.slot_of[where], facts.position_of[where]
    order = np.lexsort((positions, cols, rows, slots))
    slots, positions = slots[order], positions[order]
    rows, cols = rows[order], cols[order]
    places = []
    edges = np.flatnonzero(np.diff(slots)) + 1
    for chunk in np.split(np.arange(len(slots)), edges):
        if len(chunk) % size:
            return None
        grid = rows[chunk].reshape(size, -1)
        if (grid != np.arange(size)[:, None]).any():
            return None
        columns_of = cols[chunk].reshape(size, -1)
        if (columns_of != columns_of[:1]).any():
            return None
        places.append((int(slots[chunk[0]]), positions[chunk].reshape(size, -1)))
    return places
