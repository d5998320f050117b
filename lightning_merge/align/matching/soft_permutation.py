"""Mixing units by matrices: permuting them, where the matrices are permutations.

After a few steps of Frank-Wolfe a matrix is a mean of few permutations, so nearly all of it
is zero; products with it cost a fraction of those with a dense one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_merge.symmetry.index_maps import outermost_first
from lightning_merge.symmetry.unit_group import Group, Member

# A sparse product costs about as much for each entry as a dense one for so many.
_SPARSE = 16

Acting = tuple[str, Member, bool]
Plan = dict[str, list[Acting]]


@dataclass
class Factor:
    """A matrix that mixes units, and its sparse form where that is quicker.

    Attributes:
        matrix: `(size, size)`, float64; row `i` says of what unit `i` is made.
        sparse: The same, sparse, and its transpose; None if it is dense.
    """

    matrix: Tensor
    sparse: tuple[Tensor, Tensor] | None = None

    def leaf(self) -> "Factor":
        """The same matrix, of which derivatives can be taken."""
        return Factor(self.matrix.detach().clone().requires_grad_(), self.sparse)

    def __matmul__(self, rows: Tensor) -> Tensor:
        """The mixed rows, `(size, all)`."""
        one, other = self.sparse or (None, None)
        return _Mixed.apply(self.matrix.to(rows.device), one, other, rows)


class _Mixed(torch.autograd.Function):
    """A product whose left factor may be sparse but whose derivative by it is dense."""

    @staticmethod
    def forward(
        ctx: Any, matrix: Tensor, sparse: Tensor | None, transposed: Tensor | None, rows: Tensor
    ) -> Tensor:
        ctx.transposed = transposed
        ctx.save_for_backward(matrix, rows)
        return matrix @ rows if sparse is None else torch.sparse.mm(sparse.to(rows.device), rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        matrix, rows = ctx.saved_tensors
        by_matrix = grad @ rows.T if ctx.needs_input_grad[0] else None
        by_rows = None
        if ctx.needs_input_grad[3]:
            left = matrix.T if ctx.transposed is None else ctx.transposed.to(grad.device)
            by_rows = left @ grad if ctx.transposed is None else torch.sparse.mm(left, grad)
        return by_matrix, None, None, by_rows


def factors_of(matrices: Mapping[str, Tensor]) -> dict[str, Factor]:
    """The matrices with their sparse forms."""
    return {name: _factor(matrix) for name, matrix in matrices.items()}


def _factor(matrix: Tensor) -> Factor:
    if int(matrix.count_nonzero()) * _SPARSE > matrix.numel():
        return Factor(matrix)
    return Factor(matrix, (matrix.to_sparse(), matrix.T.to_sparse()))


def plan_of(groups: Iterable[Group]) -> Plan:
    """What mixes each tensor, in order: names of groups, where units lie, and if in order."""
    plan: Plan = {}
    for group in outermost_first(groups):
        for member in _distinct(group.members):
            ordered = torch.equal(member.index.reshape(-1), torch.arange(member.length))
            plan.setdefault(member.tensor, []).append((group.name, member, ordered))
    return plan


def _distinct(members: Sequence[Member]) -> list[Member]:
    """The members, those once that move the same axis of a tensor alike.

    The groups of a grouped convolution, as wholes, lie along `(groups, outputs)` and along
    `(groups, inputs)` of its weight. Both are whole rows of the first axis, which moves once.
    """
    found: list[Member] = []
    for member in map(_along_one_axis, members):
        same = (m for m in found if m.place == member.place)
        if not any(torch.equal(m.index, member.index) for m in same):
            found.append(member)
    return found


def _along_one_axis(member: Member) -> Member:
    """The same member by its first axis alone, if its units are whole rows of that."""
    rows = member.shape[member.axes[0]]
    whole = torch.arange(member.length).reshape(rows, -1)
    if len(member.axes) == 1 or not torch.equal(member.index, whole):
        return member
    return replace(member, axes=member.axes[:1], index=torch.arange(rows)[:, None])


def is_interlocked(group: Group) -> bool:
    """Whether a group moves one tensor along two sets of axes that share one.

    One permutation of the shared axis does that, which two matrices cannot stand for.
    """
    places = list({member.place for member in _distinct(group.members)})
    return any(
        one[0] == other[0] and set(one[2]) & set(other[2])
        for index, one in enumerate(places)
        for other in places[:index]
    )


def mix_tensor(acting: Sequence[Acting], tensor: Tensor, factors: Mapping[str, Factor]) -> Tensor:
    """One tensor, mixed by the groups that act on it, in order."""
    for name, member, ordered in acting:
        first = tuple(range(len(member.axes)))
        moved = tensor.reshape(member.shape).movedim(member.axes, first)
        rows = moved.reshape(member.index.numel() if ordered else member.length, -1)
        if ordered:
            new = factors[name] @ rows.reshape(len(member.index), -1)
        else:
            index = member.index.to(tensor.device)
            mixed = factors[name] @ rows[index].flatten(1)
            new = rows.index_copy(0, index.reshape(-1), mixed.reshape(-1, rows.shape[1]))
        tensor = new.reshape(moved.shape).movedim(first, member.axes).reshape(tensor.shape)
    return tensor
