"""From an exported network to named groups, and the reasons for what is left alone."""

from collections import Counter

import numpy as np
import torch

from lightning_merge.symmetry.interchangeable import Found, find_groups
from lightning_merge.symmetry.symmetries import Symmetric, with_symmetries
from lightning_merge.symmetry.unit_group import Group, Member
from lightning_merge.trace.deadline import Deadline
from lightning_merge.trace.exported import Exported
from lightning_merge.trace.trace import Trace, walk
from lightning_merge.trace.units import Ids


def derive(exported: Exported, deadline: Deadline | None = None) -> tuple[list[Group], list[str]]:
    """The groups of a network in its own order, and what is frozen."""
    _, pairs, frozen = _derived(exported, deadline or Deadline())
    complex_ = [name for name, tensor in exported.state.items() if tensor.is_complex()]
    frozen += [f"{name}: complex numbers stay where they are" for name in complex_]
    return [group for group, _ in pairs], frozen


def derive_symmetries(exported: Exported, deadline: Deadline | None = None) -> Symmetric:
    """The same groups, each with the largest symmetry that it seems to allow."""
    trace, pairs, _ = _derived(exported, deadline or Deadline())
    return with_symmetries(trace, pairs)


def _derived(
    exported: Exported, deadline: Deadline
) -> tuple[Trace, list[tuple[Group, Found]], list[str]]:
    trace = walk(exported, deadline)
    found, roots = find_groups(trace, deadline)
    order = {name: index for index, name in enumerate(exported.state)}
    pairs = []
    names: Counter[str] = Counter()
    parents = _parents(found)
    named: list[str] = []
    carriers = set(parents)
    for index, one in enumerate(found):
        name = _name(one, trace, index in carriers)
        names[name] += 1
        named.append(name if names[name] == 1 else f"{name}#{names[name]}")
    for one, name, parent in zip(found, named, parents, strict=True):
        members = tuple(
            Member(
                tensor=trace.slots[slot].tensor,
                axes=trace.slots[slot].axes,
                index=torch.from_numpy(np.ascontiguousarray(positions)),
                shape=trace.slots[slot].shape,
                role=trace.slots[slot].role,
            )
            for slot, positions in one.places
        )
        level = (1 + int(one.columns.shape[1])) if one.wholes else 0
        outer = named[parent] if parent is not None else None
        pairs.append((Group(name, len(one.columns), members, one.blocks, level, outer), one))
    pairs.sort(key=lambda p: (min(order[m.tensor] for m in p[0].members), -p[0].level))
    return trace, pairs, _frozen(trace, found, roots, carriers)


def _parents(found: list[Found]) -> list[int | None]:
    """For each group the group whose rows carry this group's units."""
    carrier: dict[int, int] = {}
    for index, one in enumerate(found):
        if one.wholes:
            for unit in one.columns.ravel().tolist():
                carrier.setdefault(unit, index)
    result: list[int | None] = []
    for index, one in enumerate(found):
        parent = carrier.get(int(one.columns[0, 0]))
        result.append(parent if parent != index else None)
    return result


def _name(one: Found, trace: Trace, carries: bool) -> str:
    """The layer that creates the units: the first weight that has them along axis 0."""
    slots = [trace.slots[slot] for slot, _ in one.places]
    creators = [s for s in slots if s.axes[0] == 0 and len(s.shape) > 1]
    slot = (creators or slots)[0]
    layer = slot.tensor.removesuffix(".weight").removesuffix(".bias")
    suffix = one.name or ("blocks" if carries else "")
    return f"{layer}.{suffix}" if suffix else layer


def _frozen(trace: Trace, found: list[Found], roots: Ids, carriers: set[int | None]) -> list[str]:
    """One line for each run of positions that no group moves, or only as a part of a block."""
    moved, alone = (np.zeros(len(roots), dtype=bool) for _ in range(2))
    for index, one in enumerate(found):
        units = one.columns.ravel()
        moved[units] = True
        if not (one.name == "heads" or index in carriers):
            alone[units] = True
    for block in trace.units.blocks:
        alone[roots[block.parents]] |= moved[roots[block.parents]]
    reason_of, reasons = _reasons(trace, roots)
    lines = []
    for slot in trace.slots:
        own = roots[slot.ids.ravel()]
        for chosen, prefix in (
            (~moved[own], ""),
            ((moved & ~alone)[own], "moves as a whole only: "),
        ):
            for code, count in Counter(reason_of[own[chosen]].tolist()).items():
                reason = reasons[code] if code >= 0 else "it has no other unit to be exchanged with"
                if reason == "kernel positions":
                    continue
                axes = "+".join(map(str, slot.axes))
                lines.append(f"{slot.tensor} axis {axes}: {count} of {len(own)}: {prefix}{reason}")
    return lines


def _reasons(trace: Trace, roots: Ids) -> tuple[Ids, list[str]]:
    """For each unit the number of the reason that holds it, or -1; and the reasons."""
    reason_of = np.full(len(roots), -1, dtype=np.int64)
    reasons: list[str] = []
    for held in reversed(trace.units.frozen):
        reason_of[roots[held.ids]] = len(reasons)
        reasons.append(held.reason)
    for block in trace.units.blocks:
        # What stands for a whole slice in place keeps each of its units in that slice.
        children, parents = roots[block.children], roots[block.parents]
        spread = np.broadcast_to(reason_of[parents][:, None], children.shape)
        free = (reason_of[children] < 0) & (spread >= 0)
        reason_of[children[free]] = spread[free]
    return reason_of, reasons
