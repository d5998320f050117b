"""Tensors that a state dict holds under several names."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from lightning_merge.symmetry.unit_group import Group


def under_all_names(groups: Sequence[Group], model: nn.Module) -> list[Group]:
    """Groups in which a tensor moves under all of its names."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    same = {name: group for group in names.values() if len(group) > 1 for name in group}
    if not same:
        return list(groups)
    return [
        replace(
            group,
            # A user may have listed several of the names already.
            members=tuple(
                {
                    (name, member.place[1:], tuple(member.index.ravel().tolist())): replace(
                        member, tensor=name
                    )
                    for member in group.members
                    for name in same.get(member.tensor, [member.tensor])
                }.values()
            ),
        )
        for group in groups
    ]
