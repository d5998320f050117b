"""Closed forms for the maps of one group: Procrustes, and the balance of makers and readers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.align.matching.weight_similarity import rows
from lightning_merge.symmetry.linear_maps import apply_linear, complement_of_ones, keeping_ones
from lightning_merge.symmetry.unit_group import Group

# Directions of a head that are this much weaker than its strongest one are not balanced, and no
# heads that are this much weaker than the strongest head.
_WEAKEST, _EMPTY = 1e-8, 1e-12
# Groups that share tensors are balanced so often, or until nothing changes by more than this;
# in float64 where there are not many numbers.
_SWEEPS, _BALANCED, _SMALL = 300, 1e-10, 20_000_000


def nearest_orthogonal(scores: Tensor) -> Tensor:
    """The orthogonal matrices `T` that maximise `sum(T * scores)`, in float64.

    Args:
        scores: `(..., n, n)`, products of a's units (rows) with b's (columns).
    """
    left, _, right = torch.linalg.svd(scores.detach().cpu().double())
    return left @ right


def rotation(group: Group, scores: Tensor) -> Tensor:
    """The matrix of an orthogonal group that maximises `sum(T * scores)`, `(size, size)`."""
    if not group.keeps_ones:
        return nearest_orthogonal(scores)
    basis = complement_of_ones(group.size)
    inside = nearest_orthogonal(basis.T @ scores.detach().cpu().double() @ basis)
    return basis @ inside @ basis.T + keeping_ones(group)


def balance(groups: Sequence[Group], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps after which what makes units and what reads them have equal Gram matrices.

    Two networks that differ by invertible maps differ by orthogonal ones after it, and those
    that differ by positive factors not at all. Where groups lie along several axes of a tensor,
    they are balanced in turn until none changes: the sum of squares falls each time.

    Args:
        groups: Groups; those that are neither `invertible` nor `scaled` are left out.
        state: A canonical state dict.

    Returns:
        Maps by group name, float64.
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
    """The symmetric `M` for which `M makes M^T = M^-T reads M^-1`, for each block."""
    root, back = _power(makes, 0.5), _power(makes, -0.5)
    found = _power(back @ _power(root @ _power(reads, 1.0) @ root, 0.5) @ back, 0.5)
    # Heads of zeros, as padding makes them, have nothing to be balanced.
    sizes = [x.diagonal(dim1=-2, dim2=-1).sum(-1) for x in (makes, reads)]
    empty = torch.stack([size <= _EMPTY * size.max() for size in sizes]).any(0)
    found[empty] = torch.eye(makes.shape[-1], dtype=found.dtype)
    return found


def _power(matrix: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    values = values.clamp_min(_WEAKEST * values.amax(-1, keepdim=True).clamp_min(1e-300))
    return (vectors * values.pow(power)[..., None, :]) @ vectors.mT


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
