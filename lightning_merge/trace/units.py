"""Units: the indices that a permutation moves, what ties them and what holds them in place.

Every index of every parameter and buffer axis starts as a unit of its own. Walking
through the network *ties* units that must move together, *freezes* units that must not
move, and *blocks* units that may move only together with their neighbours (the rows of
one attention head). All three only ever add facts, so the order of the walk is free.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Role = Literal["makes", "reads", "scales"]

# Kinds of linear maps that an operator may let pass: positive factors for single units,
# orthogonal matrices, any matrices.
SCALED, ORTHOGONAL, INVERTIBLE = 1, 2, 4
EVERY_KIND = SCALED | ORTHOGONAL | INVERTIBLE


class Cause(Enum):
    """What kind of thing holds a unit in place; only LOST says something about this engine."""

    LOST = "lost"  # nobody knows how to move it
    POSITION = "position"  # it indexes pixels, tokens or the network's own inputs
    GATHERED = "gathered"  # it is looked up by its position, as in a table
    KERNEL = "kernel"  # it indexes the window of a convolution
    OUTPUT = "output"  # it is an output of the network


@dataclass(frozen=True)
class Frozen:
    """Units that are held in place, and why."""

    ids: Ids
    reason: str
    cause: Cause


@dataclass(frozen=True)
class Blocks:
    """A partition that permutations must respect: row `h` of `children` is block `parents[h]`.

    `children` are units, `(blocks, width)`; `parents` stand for blocks as wholes, `(blocks,)`.
    """

    children: Ids
    parents: Ids


@dataclass(frozen=True)
class Limit:
    """Units with an operator that lets only some kinds of linear maps pass.

    `kinds` is a sum of `SCALED`, `ORTHOGONAL` and `INVERTIBLE`; `reason` says what the operator is.
    """

    ids: Ids
    kinds: int
    reason: str


class Units:
    """A growing set of units with the facts that have been learned about them."""

    def __init__(self) -> None:
        self.count = 0
        self.frozen: list[Frozen] = []
        self.blocks: list[Blocks] = []
        self.pieces: list[Ids] = []
        self.names: list[tuple[Ids, str]] = []
        self.roles: list[tuple[Ids, Role]] = []
        self.limits: list[Limit] = []
        self.means: list[Ids] = []
        self._ties: list[tuple[Ids, Ids]] = []
        self._signed: list[tuple[Ids, Ids, int]] = []
        self._projections: dict[tuple[tuple[int, ...], bytes, tuple[int, ...]], Ids] = {}

    def fresh(self, shape: tuple[int, ...]) -> Ids:
        """New units, one for each entry of an array of this shape."""
        size = int(np.prod(shape))
        ids = np.arange(self.count, self.count + size, dtype=np.int64).reshape(shape)
        self.count += size
        return ids

    def tie(self, left: Ids, right: Ids, sign: int = 1) -> None:
        """Make two arrays of units, equal in shape, move together entry by entry.

        `sign` is what a linear map of one means for the other: 1 the same map, -1 its inverse
        transpose (products of them are summed), 0 nothing: they share permutations only.
        """
        if left is not right:
            self._ties.append((left.ravel(), right.ravel()))
            self.link(left, right, sign)

    def link(self, left: Ids, right: Ids, sign: int = 1) -> None:
        """Make linear maps of two arrays of units go together, whatever permutations do."""
        if sign and left is not right:
            self._signed.append((left.ravel(), right.ravel(), sign))

    def centred(self, ids: Ids) -> None:
        """State that a norm takes these units' mean off: a matrix has to keep it apart."""
        self.means.append(ids.ravel())

    def limit(self, ids: Ids, kinds: int, reason: str) -> None:
        """State which kinds of linear maps an operator lets pass unchanged, as a sum of bits."""
        self.limits.append(Limit(ids.ravel(), kinds, reason))

    def freeze(self, ids: Ids, reason: str, cause: Cause = Cause.LOST) -> None:
        """Hold units in place, for a reason that `spec.frozen` reports."""
        self.frozen.append(Frozen(ids.ravel(), reason, cause))

    def piece(self, ids: Ids) -> None:
        """Distinguish the units that a slice takes out from those that it leaves."""
        self.pieces.append(ids.ravel())

    def name(self, ids: Ids, name: str) -> None:
        """Remember what these units are, as `heads`; groups are named by it."""
        self.names.append((ids.ravel(), name))

    def role(self, ids: Ids, role: Role) -> None:
        """State what a weight does with these units; the first statement counts."""
        self.roles.append((ids.ravel(), role))

    def project(self, ids: Ids, keep: tuple[int, ...]) -> Ids:
        """Units that stand for whole slices of an array of units, along the axes that remain.

        A sum over an axis of `(heads, width)` does not care which unit of a head is where, as long
        as heads stay heads: its result is indexed by heads as wholes. Projecting records that
        permutations must keep every head together. The result has the remaining axes in the order
        of `keep`.
        """
        if keep == tuple(range(ids.ndim)):
            return ids
        key = (ids.shape, ids.tobytes(), keep)
        if key not in self._projections:
            rest = tuple(axis for axis in range(ids.ndim) if axis not in keep)
            shape = tuple(ids.shape[axis] for axis in keep)
            children = np.ascontiguousarray(ids.transpose(keep + rest))
            children = children.reshape(int(np.prod(shape)), -1)
            if children.shape[1] == 1:
                parents = children[:, 0]
            else:
                parents = self.fresh((len(children),))
                self.blocks.append(Blocks(children, parents))
            self._projections[key] = parents.reshape(shape)
        return self._projections[key]

    def roots(self) -> Ids:
        """The representative of each unit, `(count,)`, in one sweep over all ties."""
        if not self._ties:
            return np.arange(self.count, dtype=np.int64)
        left = np.concatenate([a for a, _ in self._ties])
        right = np.concatenate([b for _, b in self._ties])
        component = components(left, right, self.count)
        # The smallest member represents its component, so that the order of the network's
        # tensors decides the order of the groups.
        first = np.full(int(component.max()) + 1, self.count, dtype=np.int64)
        np.minimum.at(first, component, np.arange(self.count, dtype=np.int64))
        return first[component]

    def zones(self) -> "Zones":
        """What linear maps have to go together."""
        return Zones(self.count, self._signed, self.limits)


class Zones:
    """Units that one linear map, or its inverse transpose, moves.

    A unit that two chains of ties join to itself with opposite signs has to be mapped by a
    matrix that is its own inverse transpose: an orthogonal one.
    """

    def __init__(self, count: int, signed: list[tuple[Ids, Ids, int]], limits: list[Limit]) -> None:
        none = [np.zeros(0, dtype=np.int64)]
        left = np.concatenate([a for a, _, _ in signed] or none)
        right = np.concatenate([b + (count if sign < 0 else 0) for _, b, sign in signed] or none)
        # Every unit is there twice, as itself and as what takes the inverse transpose.
        lefts = np.concatenate([left, left + count])
        rights = np.concatenate([right, (right + count) % max(2 * count, 1)])
        self.zone = components(lefts, rights, 2 * count)
        self.count = count
        self.kinds = np.full(2 * count, EVERY_KIND, dtype=np.int64)
        for one in limits:
            for zone in (self.zone[one.ids], self.zone[one.ids + count]):
                np.bitwise_and.at(self.kinds, zone, one.kinds)
        twisted = self.zone[:count] == self.zone[count:]
        np.bitwise_and.at(self.kinds, self.zone[:count][twisted], ORTHOGONAL)

    def of(self, ids: Ids) -> Ids:
        """The zones of units."""
        return self.zone[ids]

    def dual(self, ids: Ids) -> Ids:
        """The zones that take the inverse transposes of what these units take."""
        return self.zone[ids + self.count]

    def allowed(self, ids: Ids) -> int:
        """The kinds of maps that all of these units allow."""
        return int(np.bitwise_and.reduce(self.kinds[self.zone[ids.ravel()]], initial=EVERY_KIND))


def components(left: Ids, right: Ids, count: int) -> Ids:
    """Which connected component each of `count` things is in, `(count,)`, by pairs of them."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(left), dtype=np.int8), (left, right)), shape=(count, count))
    found: Ids = connected_components(graph, directed=False)[1].astype(np.int64)
    return found
