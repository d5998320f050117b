"""Permutations of groups as index maps of tensors: from where each position is taken."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lightning_merge.symmetry.unit_group import Group, Place

Permutation = dict[str, Tensor]


def outermost_first(groups: Iterable[Group]) -> list[Group]:
    """The order in which groups are applied."""
    return sorted(groups, key=lambda group: -group.level)


def to_sources(groups: Iterable[Group], permutation: Mapping[str, Tensor]) -> dict[Place, Tensor]:
    """From where each position is taken when all groups are applied, by place."""
    sources: dict[Place, Tensor] = {}
    for group in outermost_first(groups):
        given = permutation.get(group.name)
        if given is None:
            continue
        checked = group.check(given)
        if torch.equal(checked, group.identity()):
            continue
        for member in group.members:
            source = group.sources(member, checked)
            before = sources.get(member.place)
            sources[member.place] = source if before is None else before[source]
    return sources


def from_sources(groups: Iterable[Group], sources: Mapping[Place, Tensor]) -> Permutation:
    """The inverse of `to_sources`, peeling off the outermost groups first."""
    rest = dict(sources)
    permutation: Permutation = {}
    for group in outermost_first(groups):
        member = group.members[0]
        source = rest.get(member.place)
        if source is None:
            permutation[group.name] = group.identity()
            continue
        p = member.unit_at[source[member.index[:, 0]]]
        permutation[group.name] = p
        inverse = torch.argsort(p)
        for member in group.members:
            if member.place in rest:
                rest[member.place] = group.sources(member, inverse)[rest[member.place]]
    return permutation


def carried_units(
    group: Group, groups: Iterable[Group], permutation: Mapping[str, Tensor]
) -> Tensor:
    """Where each unit comes from once those groups are applied that carry its blocks, `(size,)`."""
    outer = [other for other in groups if other.level > group.level]
    member = group.members[0]
    source = to_sources(outer, permutation).get(member.place)
    return group.identity() if source is None else member.unit_at[source[member.index[:, 0]]]


def gather_all(state: Mapping[str, Tensor], sources: Mapping[Place, Tensor]) -> dict[str, Tensor]:
    """A new state dict with the entries of every place taken from their sources."""
    moved = by_tensor(sources)
    return {
        name: gather(tensor.detach(), moved[name]) if name in moved else tensor.detach().clone()
        for name, tensor in state.items()
    }


def by_tensor(sources: Mapping[Place, Tensor]) -> dict[str, list[tuple[Place, Tensor]]]:
    """The places of each tensor, with their sources."""
    found: dict[str, list[tuple[Place, Tensor]]] = {}
    for place, source in sources.items():
        found.setdefault(place[0], []).append((place, source))
    return found


def gather(tensor: Tensor, sources: list[tuple[Place, Tensor]]) -> Tensor:
    """A new tensor with the entries of each place taken from their sources."""
    taken: set[int] = set()
    simple = True
    for (_, shape, axes), _ in sources:
        simple &= len(axes) == 1 and shape == tuple(tensor.shape) and not taken & set(axes)
        taken |= set(axes)
    if simple:
        for (_, _, axes), source in sources:
            tensor = tensor.index_select(axes[0], source.to(tensor.device))
        return tensor
    shape = sources[0][0][1]
    rank = len(shape)
    coordinates = [
        torch.arange(size).reshape([-1 if d == axis else 1 for d in range(rank)])
        for axis, size in enumerate(shape)
    ]
    for (_, _, axes), source in sources:
        sizes = [shape[a] for a in axes]
        spread = [shape[d] if d in axes else 1 for d in range(rank)]
        for axis, coordinate in zip(axes, torch.unravel_index(source, sizes), strict=True):
            # An axis that two places share (the groups of a convolution) moves alike in both.
            if coordinates[axis].numel() == shape[axis] or len(axes) > 1:
                coordinates[axis] = coordinate.reshape(spread)
    index = tuple(c.to(tensor.device) for c in coordinates)
    return tensor.reshape(shape)[index].reshape(tensor.shape)
