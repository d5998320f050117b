"""Folding: scales of norms and LayerScale put into the layers next to them, and taken out again.

With a norm's weight at 1 and its bias at 0 an orthogonal matrix passes it. LayerNorm also takes
the mean off, so what writes into a stream that LayerNorms alone read may lose its mean over the
units, and what reads it need not see one. Names, shapes and function stay.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.symmetry.unit_group import Group, Member, in_order
from lightning_merge.trace.folds import Folds, NormFold

# A scale this much smaller than the others cannot be divided by.
_SMALLEST = 1e-3
_ZERO = 1e-12

State = dict[str, Tensor]


def folded(state: Mapping[str, Tensor], groups: Sequence[Group], folds: Folds) -> State:
    """The state dict in its canonical form; norms that cannot pass on a bias keep it."""
    result = {name: tensor.detach().clone() for name, tensor in state.items()}
    work = _working(result, groups, folds)
    _fold_scales(work, folds)
    for group in groups:
        for member in centred(group, folds):
            work[member.tensor] = work[member.tensor] - _mean(work[member.tensor], member)
    return _back(result, work)


def unfolded(
    state: Mapping[str, Tensor], like: Mapping[str, Tensor], groups: Sequence[Group], folds: Folds
) -> State:
    """A canonical state dict with the scales, shifts and means of another network again.

    An average of two networks computes the same whether it is taken here or between canonical
    forms, as all of this is linear.
    """
    result = {name: tensor.detach().clone() for name, tensor in state.items()}
    work = _working(result, groups, folds)
    means = _working(dict(like), groups, folds)
    _fold_scales(means, folds)
    for group in groups:
        for member in centred(group, folds):
            work[member.tensor] = work[member.tensor] + _mean(means[member.tensor], member)
    for scale in folds.scales:
        factor = _floored(like[scale.scale])
        for name in (scale.writer.weight, scale.writer.bias):
            if name is not None:
                work[name] = work[name] / _spread(factor, work[name], 0)
        work[scale.scale] = factor
    for norm in folds.norms:
        factor = _floored(like[norm.weight])
        for reader in norm.readers:
            work[reader.weight] = work[reader.weight] / _spread(factor, work[reader.weight], 1)
        work[norm.weight] = factor
        if norm.takes_bias:
            _move_bias(work, norm, like[str(norm.bias)].double().cpu())
        elif norm.bias is not None:
            work[norm.bias] = work[norm.bias] * factor
    return _back(result, work)


def is_folded(state: Mapping[str, Tensor], group: Group, folds: Folds) -> bool:
    """Whether the scales that an orthogonal matrix meets are 1."""
    tensors = {member.tensor for member in group.members}
    names = [norm.weight for norm in folds.norms] + [scale.scale for scale in folds.scales]
    return all(bool((state[n] == 1).all()) for n in names if n in tensors and n in state)


def centred(group: Group, folds: Folds) -> list[Member]:
    """The members whose mean over the units does not matter."""
    if group.symmetry != "orthogonal" or not group.keeps_ones:
        return []
    norms = {norm.weight: norm for norm in folds.norms if norm.takes_mean}
    readers = {reader.weight for norm in norms.values() for reader in norm.readers}
    # Behind a norm that keeps its bias, what reads sees that bias's mean.
    blind = {reader.weight for n in norms.values() if n.takes_bias for reader in n.readers}
    biases = {norm.bias for norm in norms.values()}
    if any(m.repeat > 1 for m in group.members if m.tensor in norms):
        return []
    if any(m.variance < 0 and m.tensor not in readers for m in group.members):
        return []
    writers = [m for m in group.members if m.variance > 0 and m.tensor not in biases]
    return writers + [m for m in group.members if m.variance < 0 and m.tensor in blind]


def _working(state: State, groups: Sequence[Group], folds: Folds) -> State:
    """What folding changes, in float64 on the CPU."""
    names = {norm.weight for norm in folds.norms} | {norm.bias for norm in folds.norms}
    for layer in [r for norm in folds.norms for r in norm.readers] + [
        s.writer for s in folds.scales
    ]:
        names |= {layer.weight, layer.bias}
    names |= {scale.scale for scale in folds.scales}
    names |= {member.tensor for group in groups for member in centred(group, folds)}
    return {n: state[n].detach().double().cpu() for n in names if n is not None and n in state}


def _back(result: State, work: State) -> State:
    for name, tensor in work.items():
        result[name] = tensor.to(result[name])
    return result


def _fold_scales(work: State, folds: Folds) -> None:
    for norm in folds.norms:
        if norm.takes_bias:
            _move_bias(work, norm, torch.zeros_like(work[norm.weight]))
        elif norm.bias is not None:
            # It stays, and the readers' new weights multiply it by the scale.
            work[norm.bias] = work[norm.bias] / _floored(work[norm.weight], _ZERO)
        for reader in norm.readers:
            factor = _spread(work[norm.weight], work[reader.weight], 1)
            work[reader.weight] = work[reader.weight] * factor
        work[norm.weight] = torch.ones_like(work[norm.weight])
    for scale in folds.scales:
        for name in (scale.writer.weight, scale.writer.bias):
            if name is not None:
                work[name] = work[name] * _spread(work[scale.scale], work[name], 0)
        work[scale.scale] = torch.ones_like(work[scale.scale])


def _move_bias(work: State, norm: NormFold, new: Tensor) -> None:
    """Give a norm another bias, and its readers what that takes from them."""
    assert norm.bias is not None
    shift = work[norm.bias] - new
    for reader in norm.readers:
        assert reader.bias is not None
        weight = work[reader.weight]
        matrix = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
        work[reader.bias] = work[reader.bias] + matrix @ shift
    work[norm.bias] = new


def _spread(vector: Tensor, tensor: Tensor, axis: int) -> Tensor:
    return vector.reshape([-1 if d == axis else 1 for d in range(tensor.ndim)])


def _floored(scale: Tensor, smallest: float = _SMALLEST) -> Tensor:
    """A scale that can be divided by."""
    scale = scale.detach().double().cpu()
    least = smallest * float(scale.square().mean().sqrt()) or 1.0
    return torch.where(scale.abs() < least, torch.where(scale < 0, -least, least), scale)


def _mean(tensor: Tensor, member: Member) -> Tensor:
    """The mean over the units at each of their positions; zero elsewhere."""
    axis = member.axes[0]
    rows = tensor.movedim(axis, 0)
    if in_order(member.index, len(rows)):
        return tensor.mean(axis, keepdim=True)
    mean = torch.zeros_like(rows)
    for column in member.index.T:
        mean[column] = rows[column].mean(0, keepdim=True)
    return mean.movedim(0, axis)
