"""Closed forms for the maps of one group: Procrustes, and the balance of makers and readers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.align.matching.decomposition import svd
from lightning_merge.align.matching.weight_similarity import rows
from lightning_merge.symmetry.linear_maps import apply_linear, complement_of_ones, keeping_ones
from lightning_merge.symmetry.unit_group import Group

# Directions of a head that are this much weaker than its strongest one are not balanced, and no
# heads that are this much weaker than the strongest head.
_WEAKEST, _EMPTY = 1e-8, 1e-12
# What is made and not read, or read and not made, is left with this share of what is both, unless
# it has much less.
_IDLE, _FAINT = 1e-2, 1e-4
# Groups that share tensors are balanced so often, or until nothing changes by more than this;
# in float64 where there are not many numbers.
_SWEEPS, _BALANCED, _SMALL = 300, 1e-10, 20_000_000


def nearest_orthogonal(scores: Tensor) -> Tensor:
    """The orthogonal matrices `T` that maximise `sum(T * scores)`, in float64.

    Scores are `(..., n, n)`, products of a's units (rows) with b's (columns).
    """
    left, _, right = svd(scores.detach().cpu().double())
    return left @ right


def rotation(group: Group, scores: Tensor) -> Tensor:
    """The matrix of an orthogonal group that maximises `sum(T * scores)`, `(size, size)`."""
    if not group.keeps_ones:
        return nearest_orthogonal(scores)
    basis = complement_of_ones(group.size)
    inside = nearest_orthogonal(basis.T @ scores.detach().cpu().double() @ basis)
    return basis @ inside @ basis.T + keeping_ones(group)


def balance(groups: Sequence[Group], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps, float64, after which what makes units and what reads them have equal Gram matrices.

    Two networks that differ by invertible maps differ by orthogonal ones after it, and those that
    differ by positive factors not at all. Where groups lie along several axes of a tensor, they are
    balanced in turn until none changes: the sum of squares falls each time. Groups that are neither
    `invertible` nor `scaled` are left out. The state dict is canonical.
    """
    chosen = [group for group in groups if group.symmetry in ("invertible", "scaled")]
    places = {m.place for group in chosen for m in group.members if m.variance}
    work = {name: state[name] for name in sorted({place[0] for place in places})}
    small = sum(tensor.numel() for tensor in work.values()) < _SMALL
    if small:
        work = {name: tensor.double() for name, tensor in work.items()}
    # Along one axis of a tensor, groups have different units.
    alone = len(work) == len(places)
    found: dict[str, Tensor] = {}
    for _ in range(1 if alone else _SWEEPS):
        change = 0.0
        for group in chosen:
            if group.symmetry == "invertible":
                makes, reads = (_grams(group, work, sign) for sign in (1, -1))
                step = _balanced(makes, reads)
                change = max(change, float((step - torch.eye(step.shape[-1])).abs().max()))
                found[group.name] = step @ found[group.name] if group.name in found else step
            else:
                makes, reads = (_squares(group, work, sign) for sign in (1, -1))
                least = 1e-12 * (makes.max() * reads.max()).sqrt().clamp_min(1e-300)
                step = (reads.clamp_min(least) / makes.clamp_min(least)).pow(0.25)
                change = max(change, float((step - 1).abs().max()))
                found[group.name] = step * found.get(group.name, 1.0)
            apply_linear(work, [group], {group.name: step})
        if change < (_BALANCED if small else 1e-4):
            break
    return found


def _grams(group: Group, state: Mapping[str, Tensor], sign: int) -> Tensor:
    """Products of units in each block, over the tensors of one sign, `(blocks, width, width)`."""
    width = group.size // group.blocks
    total = torch.zeros(group.blocks, width, width, dtype=torch.float64)
    for member in group.members:
        if member.variance == sign:
            own = rows(state[member.tensor], member, member.index).cpu().double()
            own = own.reshape(group.blocks, width, -1)
            total += own @ own.mT
    return total


def _squares(group: Group, state: Mapping[str, Tensor], sign: int) -> Tensor:
    """Squared norms of units over the tensors of one sign, `(size,)`."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members:
        if member.variance == sign:
            own = rows(state[member.tensor], member, member.index).cpu().double()
            total += own.square().sum(1)
    return total


def _balanced(makes: Tensor, reads: Tensor) -> Tensor:
    """The symmetric `M` for which `M makes M^T = M^-T reads M^-1`, for each block.

    Where units are more than what makes or reads them can tell apart, that holds for the directions
    in which they are both made and read; the others make no difference and are made small.
    """
    found = []
    for one, other in zip(makes, reads, strict=True):
        left, right = _half(one), _half(other)
        u, both, vh = svd(right.T @ left)
        rank = int((both > _EMPTY * both.amax().clamp_min(1e-300)).sum()) if both.numel() else 0
        if not rank:
            found.append(torch.eye(len(one), dtype=one.dtype))
            continue
        root = both[:rank].sqrt()
        matrix = (u[:, :rank] / root).T @ right.T
        if rank < len(one):
            onto, rest = left @ (vh[:rank].T / root), svd(matrix)[2][rank:].T
            idle = torch.linalg.inv(torch.cat([onto, rest], 1))[rank:]
            quiet = _quiet(idle @ left, right.T @ rest, _IDLE * root[0])
            matrix = torch.cat([matrix, quiet @ idle])
        _, factors, axes = svd(matrix)
        found.append(axes.T * factors @ axes)
    result = torch.stack(found)
    # Heads of zeros, as padding makes them, have nothing to be balanced.
    sizes = [x.diagonal(dim1=-2, dim2=-1).sum(-1) for x in (makes, reads)]
    empty = torch.stack([size <= _EMPTY * size.max() for size in sizes]).any(0)
    result[empty] = torch.eye(makes.shape[-1], dtype=result.dtype)
    return result


def _half(gram: Tensor) -> Tensor:
    """A matrix `(n, r)` whose Gram matrix this is, in the directions where that is not zero."""
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    kept = values > _WEAKEST * values[-1].clamp_min(1e-300)
    return vectors[:, kept] * values[kept].sqrt()


def _quiet(made: Tensor, read: Tensor, size: Tensor) -> Tensor:
    """A map of directions of which `read @ made` is 0, after which both have one singular value.

    So what does not reach the output is found as well, where two networks agree in it. `made` is
    `(n, r)`, `read` is `(s, n)`; `size` is that singular value, and what is far smaller stays as it
    is.
    """
    u, values, _ = svd(made)
    values = values[values > _FAINT * torch.maximum(size, values[0])]
    rest = u[:, len(values) :]
    _, others, vh = svd(read @ rest)
    factors = torch.ones(rest.shape[1], dtype=u.dtype)
    others = others[others > _FAINT * size]
    factors[: len(others)] = others / size
    mine = (size / values)[:, None] * u[:, : len(values)].T
    return torch.cat([mine, factors[:, None] * (vh @ rest.T)])


def products(
    group: Group, a: Mapping[str, Tensor], b: Mapping[str, Tensor], tensors: set[str]
) -> Tensor:
    """Inner products of a's units with b's in what linear maps move, `(size, size)`."""
    total = next(iter(a.values())).new_zeros(group.size, group.size)
    for member in group.members:
        if member.tensor in tensors and (member.variance or group.symmetry == "permutation"):
            one, two = (rows(s[member.tensor], member, member.index) for s in (a, b))
            total.addmm_(one, two.T)
    return total
