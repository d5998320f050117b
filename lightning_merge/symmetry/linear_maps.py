"""Maps of units that are more than permutations: drawn, checked, applied, inverted, composed.

A map is a LongTensor `(size,)` of indices (the new unit `i` is the old unit `map[i]`), positive
factors `(size,)`, both of them as `(2, size)` (the new unit `i` is `map[1, i]` times the old unit
`map[0, i]`), a matrix `(size, size)`, or a matrix for each block, `(blocks, width, width)`.
Heads as wholes go first, then what is inside them, in their new places.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.index_maps import carried_units, from_sources, to_sources
from lightning_merge.symmetry.unit_group import Group, Member, in_order

# How far from orthogonal, or from keeping the all-ones vector, a matrix in float32 may be.
_TOLERANCE = 1e-4


def random_map(group: Group, generator: torch.Generator | None = None) -> Tensor:
    """A random map of the kind that a group's symmetry allows, float64 where it is no index."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    order = group.random(generator)
    width = group.size // group.blocks
    if group.symmetry == "scaled":
        return torch.stack([order.double(), normal(group.size).mul(0.5).exp()])
    if group.symmetry == "orthogonal":
        basis = (
            complement_of_ones(group.size) if group.keeps_ones else torch.eye(group.size).double()
        )
        turn = torch.linalg.qr(normal(basis.shape[1], basis.shape[1])).Q
        return basis @ turn @ basis.T + keeping_ones(group)
    if group.symmetry == "invertible":
        left, right = (torch.linalg.qr(normal(group.blocks, width, width)).Q for _ in range(2))
        return left * normal(group.blocks, 1, width).mul(0.3).exp() @ right
    return order


def complement_of_ones(size: int) -> Tensor:
    """Orthonormal columns that are orthogonal to the all-ones vector, `(size, size - 1)`."""
    start = torch.eye(size, dtype=torch.float64)
    start[:, 0] = 1
    return torch.linalg.qr(start).Q[:, 1:]


def keeping_ones(group: Group) -> Tensor:
    """The projection onto the all-ones vector where a group keeps it, else zeros."""
    value = 1 / group.size if group.keeps_ones else 0.0
    return torch.full((group.size, group.size), value, dtype=torch.float64)


def order_of(group: Group, given: Tensor) -> Tensor | None:
    """The permutation in a map of indices or of indices and factors; None for matrices."""
    if not given.is_floating_point():
        return given
    if group.symmetry == "scaled":
        return given[0].round().long() if given.ndim == 2 else group.identity()
    return None


def checked(group: Group, given: Tensor) -> Tensor:
    """A map that fits its group, or an error; matrices as `(blocks, width, width)`, on the CPU."""
    if not isinstance(given, Tensor) or not given.is_floating_point():
        return group.check(given)
    given, width = given.detach().cpu(), group.size // group.blocks
    if group.symmetry == "permutation":
        raise AlignmentError(
            f"group {group.name!r}: a permutation is a LongTensor, and no other map is allowed here"
        )
    if group.symmetry == "scaled":
        if given.shape not in ((group.size,), (2, group.size)):
            raise AlignmentError(
                f"group {group.name!r}: factors have shape ({group.size},), with indices "
                f"(2, {group.size}); these have {tuple(given.shape)}"
            )
        if not bool((given.reshape(-1, group.size)[-1] > 0).all()):
            raise AlignmentError(f"group {group.name!r}: factors have to be positive")
        order = order_of(group, given)
        assert order is not None
        return torch.stack([group.check(order).to(given), given.reshape(-1, group.size)[-1]])
    if given.numel() != group.blocks * width * width:
        raise AlignmentError(
            f"group {group.name!r} takes matrices ({group.blocks}, {width}, {width}), this map "
            f"has shape {tuple(given.shape)}"
        )
    given = given.reshape(group.blocks, width, width)
    if group.symmetry == "orthogonal":
        matrix = given[0].double()
        rest = matrix @ matrix.T - torch.eye(width, dtype=torch.float64)
        if float(rest.abs().max()) > _TOLERANCE:
            raise AlignmentError(f"group {group.name!r}: the matrix is not orthogonal")
        if group.keeps_ones and float((matrix.sum(1) - 1).abs().max()) > _TOLERANCE * width:
            raise AlignmentError(
                f"group {group.name!r}: the matrix has to keep the all-ones vector"
            )
    return given


def apply_linear(
    state: dict[str, Tensor], groups: Iterable[Group], maps: Mapping[str, Tensor]
) -> None:
    """Exchange the tensors that factors and matrices move, after all permutations."""
    for group in groups:
        given = maps.get(group.name)
        if given is None or not given.is_floating_point():
            continue
        given = checked(group, given)
        factors = [given[1], 1 / given[1]] if group.symmetry == "scaled" else None
        inverse = None if factors else torch.linalg.inv(given).mT
        for member in group.members:
            tensor = state.get(member.tensor)
            if tensor is None or not member.variance:
                continue
            if factors:
                state[member.tensor] = map_member(
                    tensor, member, factors[member.variance < 0], None
                )
            else:
                matrix = given if member.variance > 0 else inverse
                state[member.tensor] = map_member(tensor, member, None, matrix)


def map_member(
    tensor: Tensor, member: Member, factors: Tensor | None, matrix: Tensor | None
) -> Tensor:
    """A tensor whose units are multiplied by factors, or mixed by a matrix in each block."""
    moved = tensor.reshape(member.shape).movedim(member.axes, tuple(range(len(member.axes))))
    flat = moved.reshape(member.length, -1)
    whole = in_order(member.index, member.length)
    index = member.index.reshape(-1).to(tensor.device)
    rows = (flat if whole else flat[index]).reshape(len(member.index), -1)
    if factors is not None:
        rows = rows.to(factors.dtype) * factors.to(rows.device)[:, None]
    else:
        assert matrix is not None
        rows = rows.to(matrix.dtype).reshape(matrix.shape[0], matrix.shape[1], -1)
        rows = matrix.to(rows.device) @ rows
    rows = rows.reshape(len(index), -1).to(flat.dtype)
    flat = rows if whole else flat.index_copy(0, index, rows)
    back = flat.reshape(moved.shape).movedim(tuple(range(len(member.axes))), member.axes)
    return back.reshape(tensor.shape).contiguous()


def as_matrices(group: Group, given: Tensor | None) -> Tensor:
    """A map as a matrix in each block, `(blocks, width, width)`."""
    width = group.size // group.blocks
    if given is not None and given.is_floating_point():
        return checked(group, given)
    order = group.identity() if given is None else group.check(given)
    inside = (order % width).reshape(group.blocks, width)
    return torch.nn.functional.one_hot(inside, width).double()


def as_factors(group: Group, given: Tensor | None) -> Tensor:
    """The factors of a map, `(size,)`; ones for indices."""
    if given is None or not given.is_floating_point():
        return torch.ones(group.size, dtype=torch.float64)
    return checked(group, given)[1].double()


def orders(groups: Sequence[Group], maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The permutations in some maps; groups with matrices are missing."""
    found = {}
    for group in groups:
        given = maps.get(group.name)
        order = None if given is None else order_of(group, given)
        if order is not None:
            found[group.name] = order
    return found


def _block_order(
    group: Group, groups: Sequence[Group], permutation: Mapping[str, Tensor]
) -> Tensor:
    """Where each block of a group comes from: heads move as wholes."""
    width = group.size // group.blocks
    return carried_units(group, groups, permutation)[::width] // width


def _full_order(group: Group, order: Tensor, blocks: Tensor) -> Tensor:
    """Where each unit comes from, heads' moves included."""
    width = group.size // group.blocks
    return blocks[order // width] * width + order % width


def inverse_maps(groups: Sequence[Group], maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The maps that undo others."""
    places = orders(groups, maps)
    sources = to_sources(groups, places)
    result = from_sources(groups, {p: torch.argsort(s) for p, s in sources.items()})
    for group in groups:
        given = maps.get(group.name)
        if given is None or not given.is_floating_point():
            continue
        blocks = _block_order(group, groups, places)
        if group.symmetry == "scaled":
            full = _full_order(group, places[group.name], blocks)
            factors = (1 / as_factors(group, given))[torch.argsort(full)]
            result[group.name] = torch.stack([result[group.name].double(), factors])
        else:
            result[group.name] = torch.linalg.inv(checked(group, given))[torch.argsort(blocks)]
    return result


def compose_maps(
    groups: Sequence[Group], first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """One map for two, the first applied first."""
    places = [orders(groups, maps) for maps in (first, second)]
    one, two = (to_sources(groups, maps) for maps in places)
    both = {place: one[place] for place in one if place not in two}
    both |= {place: one[place][s] if place in one else s for place, s in two.items()}
    result = from_sources(groups, both)
    for group in groups:
        given = [maps.get(group.name) for maps in (first, second)]
        if not any(g is not None and g.is_floating_point() for g in given):
            continue
        blocks = _block_order(group, groups, places[1])
        if group.symmetry == "scaled":
            order = places[1].get(group.name, group.identity())
            earlier = as_factors(group, given[0])[_full_order(group, order, blocks)]
            factors = as_factors(group, given[1]) * earlier
            result[group.name] = torch.stack([result[group.name].double(), factors])
        else:
            one_, two_ = (as_matrices(group, g).double() for g in given)
            result[group.name] = two_ @ one_[blocks]
    return result
