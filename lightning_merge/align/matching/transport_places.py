"""Where units lie in two networks of one family, and tensors carried from one to the other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_merge.align.matching.head_shared_units import carrier
from lightning_merge.align.matching.soft_permutation import is_interlocked, plan_of
from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.unit_group import Group, Member, other_positions

Axes = tuple[int, ...]
Plans = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Units:
    """Units of one group at one place of a tensor: `(a's units, repeat)`, `(b's, repeat)`."""

    group: str
    reads: bool
    index_a: Tensor
    index_b: Tensor


@dataclass(frozen=True, eq=False)
class Place:
    """An axis of a tensor along which units lie, of one group or several.

    Attributes:
        shape_a: The shape under which they are counted in a; `shape_b` that in b.
        axes: The axis, alone.
        units: The groups' units there; those of heads as wholes without what is inside them.
    """

    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    axes: Axes
    units: list[Units]

    @property
    def groups(self) -> set[str]:
        """The groups that have units here."""
        return {units.group for units in self.units}


def places_of(spec_a: PermutationSpec, spec_b: PermutationSpec) -> dict[str, list[Place]]:
    """By tensor the places of both networks' units, which must be of one family."""
    groups = [simple_groups(spec) for spec in (spec_a, spec_b)]
    plans = [plan_of(found) for found in groups]
    level = {group.name: group.level for group in groups[0]}
    found: dict[str, list[Place]] = {}
    for tensor, acting in plans[0].items():
        theirs = plans[1].get(tensor, [])
        if [_kind(*one) for one in acting] != [_kind(*one) for one in theirs]:
            raise AlignmentError(
                f"{tensor!r} does not have the same groups of units in both networks: are they of "
                "one family?"
            )
        pairs = [(n, one, other[1]) for (n, one, _), other in zip(acting, theirs, strict=True)]
        # What is inside heads first, so that heads as wholes are left with the rest.
        pairs.sort(key=lambda pair: level[pair[0]])
        places: dict[Axes, Place] = {}
        for name, one, other in pairs:
            place = places.setdefault(one.axes, Place(one.shape, other.shape, one.axes, []))
            units = _left(name, one, other, place.units)
            if units is not None:
                place.units.append(units)
        found[tensor] = list(places.values())
    return found


def simple_groups(spec: PermutationSpec) -> list[Group]:
    """The groups whose units one matrix can mix, whatever is done to the others.

    Grouped convolutions tie units along two axes of a tensor, grouped queries heads in two ways,
    and a norm of queries and keys the units of all heads; such groups are left out, and all that
    share positions with them.
    """
    held: dict[str, set[tuple[object, int]]] = {
        group.name: {(m.place, at) for m in group.members for at in m.index.reshape(-1).tolist()}
        for group in spec.groups
    }

    def is_tangled(group: Group) -> bool:
        several = any(len(member.axes) > 1 for member in group.members)
        return (
            several
            or is_interlocked(group)
            or carrier(spec.groups, group) is not None
            or any(
                group.blocks > 1 and other.level > group.level and other.name != group.parent
                for other in spec.groups
                if held[other.name] & held[group.name]
            )
        )

    tangled = {group.name for group in spec.groups if is_tangled(group)}
    left = [name for name in held if name not in tangled]
    reached = list(tangled)
    while reached:
        positions = held[reached.pop()]
        near = [name for name in left if held[name] & positions]
        left = [name for name in left if name not in near]
        reached += near
    return [group for group in spec.groups if group.name in left]


def _kind(name: str, member: Member, _: bool) -> tuple[str, Axes, str]:
    return name, member.axes, member.role


def _left(name: str, one: Member, other: Member, taken: Iterable[Units]) -> Units | None:
    """The units of a group without the positions that other groups have."""
    used = list(taken)
    rest = one.apart_from(u.index_a for u in used), other.apart_from(u.index_b for u in used)
    if not rest[0].shape[1]:
        return None
    if rest[0].shape[1] != rest[1].shape[1]:
        raise AlignmentError(
            f"group {name!r}: its units have {rest[1].shape[1]} positions in {one.tensor!r} of one "
            f"network and {rest[0].shape[1]} in the other, which cannot be compared"
        )
    return Units(name, one.role == "reads", *rest)


def carried(
    tensor: Tensor, places: Sequence[Place], plans: Plans, name: str, skip: Place | None = None
) -> Tensor:
    """A tensor of b with a's units along all of its places but `skip`.

    Plans are `(a's units, b's units)`; sizes may differ only where a group moves.
    """
    value = tensor.detach().to("cpu", torch.float64)
    for place in places:
        if place is not skip and place.units:
            value = _carried_along(value, place, plans, name)
    return value


def _carried_along(value: Tensor, place: Place, plans: Plans, name: str) -> Tensor:
    front, moved = unit_rows(value, place, place.shape_b)
    length = place.shape_a[place.axes[0]]
    rest = [
        other_positions(
            torch.cat([getattr(units, index).reshape(-1) for units in place.units]), size
        )
        for index, size in (("index_a", length), ("index_b", len(moved)))
    ]
    if len(rest[0]) != len(rest[1]):
        raise AlignmentError(
            f"{name!r} axis {place.axes[0]}: {len(rest[1])} positions that no group moves cannot "
            f"become {len(rest[0])}"
        )
    new = value.new_empty(length, moved.shape[1])
    new[rest[0]] = moved[rest[1]]
    for units in place.units:
        plan = plans[units.group]
        # What makes a unit is a mean of b's; what reads it gets all that b's readers had.
        matrix = plan * plan.shape[1] if units.reads else plan * plan.shape[0]
        mixed = matrix @ moved[units.index_b].flatten(1)
        new[units.index_a.reshape(-1)] = mixed.reshape(-1, moved.shape[1])
    back = new.reshape(length, *front[1:]).movedim(0, place.axes[0])
    # A depthwise kernel has an axis more in the view.
    return back if back.ndim == value.ndim else back.reshape(-1, *value.shape[1:])


def unit_rows(value: Tensor, place: Place, shape: tuple[int, ...]) -> tuple[torch.Size, Tensor]:
    """A tensor with a place's axis as rows: its shape with that in front, and `(length, rest)`."""
    view = value if len(shape) == value.ndim else value.reshape(shape)
    moved = view.movedim(place.axes[0], 0)
    return moved.shape, moved.reshape(len(moved), -1)


def same_named(spec: PermutationSpec, group: Group) -> Group:
    """Another network's group of the same name; an `AlignmentError` if there is none."""
    other = next((one for one in spec.groups if one.name == group.name), None)
    if other is None:
        raise AlignmentError(
            f"group {group.name!r} has no counterpart in the other network: are they of one family?"
        )
    return other
