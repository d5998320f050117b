"""Units that their activations do not tell apart are matched by their weights.

Units that never vary on the data, or that fire on the same single example, have the same
correlations: any order of them is as good. Their weights tell which is which.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.align.matching.assignment import assign
from lightning_merge.align.matching.weight_similarity import add_products, moved_parameters, rows
from lightning_merge.symmetry.index_maps import Permutation, gather, to_sources
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.unit_group import Group, Member
from lightning_merge.trace.units import components

# Two correlations that differ by less are equal but for rounding.
_EQUAL = 1e-6


def tied_units(scores: Tensor, blocks: int = 1) -> list[Tensor]:
    """Sets of two units or more that may change places without a loss of correlation.

    `scores` are `(size, size)`, rows a and columns b, with b in the order that was found: its
    diagonal is what the assignment takes. Units change places only inside one of `blocks` runs of
    equal length.
    """
    size, width = len(scores), len(scores) // blocks
    scores = scores.detach().to("cpu", torch.float64)
    one, other = _exchangeable(scores).triu(1).nonzero(as_tuple=True)
    inside = one // width == other // width
    pairs = one[inside].numpy(), other[inside].numpy()
    if not len(pairs[0]):
        return []
    component = torch.from_numpy(components(*pairs, size))
    counts = component.bincount()
    return [(component == c).nonzero()[:, 0] for c in (counts > 1).nonzero()[:, 0]]


def _exchangeable(scores: Tensor) -> Tensor:
    """Whether two units may change places without a loss, for each pair of them."""
    taken = scores.diagonal()
    return taken[:, None] + taken - scores - scores.T <= _EQUAL


def break_ties(
    spec: PermutationSpec,
    permutation: Permutation,
    scores: Mapping[str, Tensor],
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    unknown: Collection[str] = (),
) -> Permutation:
    """The permutation with tied units in the order in which their weights agree best.

    Groups are taken in the network's order. A unit is compared by what connects it with units whose
    partners are known: neither with units that are still tied, nor with those of `unknown` groups,
    which are not permuted but mapped.

    For each group that was matched by activations `scores` has its correlations, `(size, size)`,
    with b in the order of `permutation`; `state_b` is in b's own order.
    """
    by_name = {group.name: group for group in spec.groups}
    ties = {name: tied_units(matrix, by_name[name].blocks) for name, matrix in scores.items()}
    open_units = {name: torch.cat(found) for name, found in ties.items() if found}
    if not open_units:
        return permutation
    order = [group for group in spec.groups if group.name in open_units]
    open_units |= {name: by_name[name].identity() for name in unknown}
    names = moved_parameters(spec)
    a = {name: state_a[name].detach() for name in names}
    b = {name: tensor for name, tensor in spec.apply(state_b, permutation).items() if name in a}
    for group in order:
        across = _open_across(group, spec.groups, a.keys(), open_units)
        change = group.identity()
        for units in ties[group.name]:
            alike = scores[group.name].cpu()[units][:, units]
            similar = _similarity(across, units, a, b)
            similar[~_exchangeable(alike)] = -similar.abs().sum() - 1
            p, best = assign(similar)
            gain = best - similar.trace()
            loss = alike.trace() - alike[torch.arange(len(p)), p].sum()
            if gain > 0 and loss <= _EQUAL * len(units):
                change[units] = units[p]
        for place, source in to_sources([group], {group.name: change}).items():
            if place[0] in b:
                b[place[0]] = gather(b[place[0]], [(place, source)])
        permutation = spec.compose(permutation, {group.name: change})
        del open_units[group.name]
    return permutation


def _open_across(
    group: Group,
    groups: Sequence[Group],
    tensors: Collection[str],
    open_units: Mapping[str, Tensor],
) -> list[tuple[Member, list[tuple[Member, Tensor]]]]:
    """A group's members, each with the members across it whose units are open, and these."""
    return [
        (
            member,
            [
                (one, open_units[other.name])
                for other in groups
                if other.name in open_units
                for one in other.members
                if one.tensor == member.tensor and _across(one, member)
            ],
        )
        for member in group.members
        if member.tensor in tensors
    ]


def _similarity(
    across: Sequence[tuple[Member, list[tuple[Member, Tensor]]]],
    units: Tensor,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
) -> Tensor:
    """Inner products of a's units with b's, `(k, k)`, without what connects them to open ones."""
    total = torch.zeros(len(units), len(units), dtype=torch.float64)
    for member, masked in across:
        left = a[member.tensor]
        for one, closed in masked:
            left = _without(left, one, closed)
        index = member.index[units]
        add_products(total, rows(left, member, index), rows(b[member.tensor], member, index))
    return total


def _across(one: Member, other: Member) -> bool:
    """Whether two members lie along different axes of a tensor."""
    first, second = set(one.axes), set(other.axes)
    return not (first <= second or second <= first)


def _without(tensor: Tensor, member: Member, units: Tensor) -> Tensor:
    """A tensor with zeros where some units of a member lie."""
    mask = torch.ones(member.length, dtype=tensor.dtype)
    mask[member.index[units].reshape(-1)] = 0
    sizes = [size if axis in member.axes else 1 for axis, size in enumerate(member.shape)]
    masked: Tensor = tensor.reshape(member.shape) * mask.reshape(sizes).to(tensor.device)
    return masked.reshape(tensor.shape)
