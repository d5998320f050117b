"""Groups as a user lists them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.unit_group import Group, Member
from lightning_merge.trace.units import Role

Entry = tuple[str, int] | tuple[str, int, int] | tuple[str, int, int, int]


def groups_from(
    description: Mapping[str, Sequence[Entry]], state_dict: Mapping[str, Tensor]
) -> list[Group]:
    """Groups of a network, as a user lists them.

    By group name there is `(tensor, axis, offset=0, repeat=1)` for every axis along which the units
    lie: one after another from `offset` on, each with `repeat` neighbouring positions (49 for a
    channel that was flattened with 7 x 7 pixels). The first entry says how many units there are: as
    many as fit its axis. No position may be listed twice.
    """
    owner: dict[tuple[str, int, int], str] = {}
    groups = []
    for name, entries in description.items():
        members: list[Member] = []
        for entry in entries:
            size = len(members[0].index) if members else None
            member = _member(name, entry, state_dict, size)
            for position in member.index.ravel().tolist():
                other = owner.setdefault((member.tensor, member.axis, position), name)
                if other != name or position in _positions(members, member):
                    raise AlignmentError(
                        f"position {position} of {member.tensor!r} axis {member.axis} is listed "
                        f"twice, in groups {other!r} and {name!r}: leave one out"
                    )
            members.append(member)
        if not members:
            raise AlignmentError(f"group {name!r} lists nothing: give (tensor, axis) pairs")
        groups.append(Group(name, len(members[0].index), tuple(members)))
    return groups


def _positions(members: Sequence[Member], like: Member) -> set[int]:
    """The positions that these members have along one's axis."""
    return {p for m in members if m.place == like.place for p in m.index.ravel().tolist()}


def _member(name: str, entry: Entry, state_dict: Mapping[str, Tensor], size: int | None) -> Member:
    tensor, axis = entry[0], entry[1]
    offset = entry[2] if len(entry) > 2 else 0
    repeat = entry[3] if len(entry) > 3 else 1
    if tensor not in state_dict:
        raise AlignmentError(f"group {name!r}: the network has no tensor {tensor!r}")
    shape = tuple(state_dict[tensor].shape)
    if not 0 <= axis < len(shape):
        raise AlignmentError(f"group {name!r}: {tensor!r} has no axis {axis}, its shape is {shape}")
    room = shape[axis] - offset
    units = room // max(repeat, 1) if size is None else size
    # Without an offset or a repeat, an entry speaks of the whole axis.
    if units * repeat > room or (len(entry) == 2 and units != room) or min(offset, repeat - 1) < 0:
        raise AlignmentError(
            f"group {name!r}: {units} units do not fit the {shape[axis]} positions of {tensor!r} "
            f"axis {axis}: give (tensor, axis, offset, repeat)"
        )
    index = offset + torch.arange(units * repeat).reshape(units, repeat)
    return Member(tensor, (axis,), index, shape)


def with_roles(groups: Sequence[Group], model: nn.Module) -> list[Group]:
    """The groups with the roles that follow from the layers of a network."""
    modules = dict(model.named_modules())
    return [
        replace(group, members=tuple(replace(m, role=_role(m, modules)) for m in group.members))
        for group in groups
    ]


def _role(member: Member, modules: Mapping[str, nn.Module]) -> Role:
    """The member's own role, but where its layer is known to use it in another way."""
    path, _, leaf = member.tensor.rpartition(".")
    module = modules.get(path)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or leaf not in ("weight", "bias"):
        return member.role
    if getattr(module, "groups", 1) == weight.shape[0] > 1 == weight.shape[1]:
        return "scales"
    if leaf == "bias":
        return "makes"
    if isinstance(module, _ConvTransposeNd | nn.Embedding):
        return "reads" if member.axis == 0 else "makes"
    return member.role
