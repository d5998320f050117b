"""Counts the hidden units of a derived spec: which are free to permute, which not, and why."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lightning_merge.symmetry.unit_group import Group
from lightning_merge.trace.trace import Trace
from lightning_merge.trace.units import Cause, Ids


@dataclass
class Census:
    """Units of a network, each set of units that must move together counted once.

    Attributes:
        hidden: Units that are none of the kinds below.
        free: Hidden units that a group exchanges with others one by one.
        carried: Hidden units that move only as a part of their head; not counted as free.
        positions: Input channels, pixels and tokens that parameters run over.
        outputs: Outputs of the network.
        kernel: Positions in the windows of convolutions.
        reasons: Why hidden units are not free: a line, and how many units.
    """

    hidden: int = 0
    free: int = 0
    carried: int = 0
    positions: int = 0
    outputs: int = 0
    kernel: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def census(
    trace: Trace, roots: Ids, groups: Iterable[Group], refused: dict[str, tuple[Group, str]]
) -> Census:
    """Count the units of a trace.

    Args:
        trace: The trace.
        roots: The representative of each of its units.
        groups: The groups of the verified spec.
        refused: The groups that did not pass verification, and why.
    """
    count = len(roots)
    where = {(s.tensor, s.shape, s.axes): roots[s.ids.ravel()] for s in trace.slots}

    def reached(group: Group) -> Ids:
        found = [where[m.place][m.index.numpy().ravel()] for m in group.members if m.place in where]
        return np.unique(np.concatenate(found))

    leaf, whole, child = (np.zeros(count, dtype=bool) for _ in range(3))
    for group in groups:
        carries = group.name.partition("#")[0].endswith((".heads", ".blocks"))
        (whole if carries else leaf)[reached(group)] = True
    for block in trace.units.blocks:
        child[roots[block.children].ravel()] = True
    free = leaf | (whole & ~child)
    causes: dict[int, set[Cause]] = {}
    reasons: dict[int, str] = {}
    for held in trace.units.frozen:
        for root in np.unique(roots[held.ids]).tolist():
            causes.setdefault(root, set()).add(held.cause)
            if held.cause is Cause.LOST or root not in reasons:
                reasons[root] = held.reason
    for block in trace.units.blocks:
        # What stands for a whole slice in place keeps each of its units in that slice.
        rows = zip(roots[block.parents].tolist(), roots[block.children].tolist(), strict=True)
        for parent, children in rows:
            if parent in reasons:
                for one in children:
                    reasons.setdefault(one, reasons[parent])
    for group, why in refused.values():
        reasons.update(dict.fromkeys(reached(group).tolist(), why))
    creates, slots_of = np.ones(count, dtype=bool), np.zeros(count, dtype=np.int64)
    for slot in trace.slots:
        own = np.unique(roots[slot.ids.ravel()])
        slots_of[own] += 1
        if slot.axes not in ((0,), (0, 1)):
            creates[own] = False
    result = Census()
    why_not: Counter[str] = Counter()
    for root in np.flatnonzero(slots_of).tolist():
        cause = causes.get(root, set())
        if cause == {Cause.KERNEL}:
            result.kernel += 1
        elif Cause.OUTPUT in cause and creates[root]:
            result.outputs += 1
        elif _indexes(cause, int(slots_of[root])):
            result.positions += 1
        else:
            result.hidden += 1
            result.free += int(free[root])
            if not free[root]:
                carried = bool(whole[root])
                result.carried += int(carried)
                reason = reasons.get(root, "no other unit to be exchanged with")
                why_not[("moves with its head only: " if carried else "") + reason] += 1
    result.reasons = dict(why_not.most_common())
    return result


def _indexes(causes: set[Cause], slots: int) -> bool:
    """Whether a unit is a position: of the input, or of a table that nothing else reaches."""
    if causes == {Cause.GATHERED}:
        return slots == 1
    return causes in ({Cause.POSITION}, {Cause.POSITION, Cause.GATHERED})
