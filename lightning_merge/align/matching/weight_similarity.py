"""How alike the weights of units are: inner products of all that belongs to them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.unit_group import Member, in_order

# How many numbers are converted to float64 at a time; for inner products what a cache holds.
_BLOCK, _CACHED = 2**21, 2**16


def moved_parameters(spec: PermutationSpec) -> list[str]:
    """The names of the parameters that some group moves, in order."""
    names = dict.fromkeys(m.tensor for g in spec.groups for m in g.members)
    return [name for name in names if name not in spec.buffers]


def check_finite_weights(spec: PermutationSpec, states: Iterable[Mapping[str, Tensor]]) -> None:
    """Refuses weights that cannot be compared: one that some group moves is NaN or infinite."""
    for state in states:
        for name in moved_parameters(spec):
            if not bool(torch.isfinite(state[name]).all()):
                raise AlignmentError(
                    f"{name!r} of a network is NaN or infinite: train it again, or leave it out"
                )


def inner(a: Tensor, b: Tensor) -> float:
    """The inner product of two tensors in float64."""
    parts = zip(a.reshape(-1).split(_CACHED), b.reshape(-1).split(_CACHED), strict=True)
    return sum(float(torch.dot(one.double(), two.to(one.device).double())) for one, two in parts)


def rows(tensor: Tensor, member: Member, index: Tensor) -> Tensor:
    """Everything that belongs to each unit of a member, `(size, all)`."""
    view = tensor.reshape(member.shape).movedim(member.axes, tuple(range(len(member.axes))))
    flat = view.reshape(member.length, -1)
    if in_order(index, len(flat)):
        return flat
    return flat[index.reshape(-1).to(flat.device)].reshape(len(index), -1)


def add_products(total: Tensor, left: Tensor, right: Tensor, minus: Tensor | None = None) -> None:
    """Adds `left @ (right - minus).T` to float64 scores, skipping columns without a difference."""
    width = max(1, _BLOCK // max(1, len(left)))
    for start in range(0, left.shape[1], width):
        part = slice(start, start + width)
        one, two = left[:, part], right[:, part].double()
        if minus is not None:
            two -= minus[:, part]
            changed = two.any(0)
            one, two = one[:, changed], two[:, changed]
        if total.device == two.device:
            total.addmm_(one.double(), two.T)
        else:
            total += (one.double() @ two.T).to(total.device)
