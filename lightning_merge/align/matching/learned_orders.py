"""The order of b's units as parameters that gradients reach.

Sources: Ainsworth et al. 2023, "Git Re-Basin", Algorithm 3 (the hard assignment forward, a
straight-through gradient); Pena et al. 2023, "Re-basin via implicit Sinkhorn differentiation" (a
doubly stochastic matrix; here its rounds are differentiated as they are).
"""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_merge.align.matching.assignment import assign
from lightning_merge.align.matching.head_shared_units import lone_groups
from lightning_merge.align.matching.weight_similarity import add_products, moved_parameters, rows
from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.linear_maps import map_member
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.unit_group import Group

Units = Literal["fixed", "sinkhorn", "straight-through"]

_ROUNDS = 20
# Between the logits of units that are alike and those that are not, at the start.
_TEMPERATURE = 0.1


class LearnedOrders(nn.Module):
    """A square matrix of logits for each group of units whose order is free.

    At the start it says how alike the weights of two units are, from -1 to 1, in the order that b
    is given in. Units inside heads and grouped convolutions, and those that matrices mix, keep
    their order.

    With `units` as `fixed` there are none. With `sinkhorn` units of b are mixed by a doubly
    stochastic matrix. With `straight-through` they are put in the order of the best assignment, and
    gradients are those by the matrix of that.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        units: Units,
    ) -> None:
        super().__init__()
        if units not in get_args(Units):
            raise AlignmentError(f"units is {units!r}: choose one of {', '.join(get_args(Units))}")
        self.units, self.statistics = units, spec.buffers
        self.groups = [] if units == "fixed" else free_orders(spec)
        names = set(moved_parameters(spec))
        like = next((t for t in a.values() if t.is_floating_point()), torch.zeros(1))
        self.logits = nn.ParameterList(
            nn.Parameter(_alike(group, names, a, b).to(like)) for group in self.groups
        )

    def matrices(self) -> list[Tensor]:
        """For each group `(size, size)`: of which of b's units each new unit is made."""
        if self.units == "sinkhorn":
            return [sinkhorn(logits / _TEMPERATURE) for logits in self.logits]
        return [straight_through(logits) for logits in self.logits]

    def applied(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of b with its units mixed, or in their present order."""
        result = dict(state)
        for group, matrix in zip(self.groups, self.matrices(), strict=True):
            for member in group.members:
                tensor = result[member.tensor]
                if tensor.is_floating_point():
                    # No operator takes gradients by its running statistics.
                    fixed = member.tensor in self.statistics
                    own = matrix.detach() if fixed else matrix
                    result[member.tensor] = map_member(tensor, member, None, own[None])
        return result

    def found(self) -> dict[str, Tensor]:
        """The best assignment of each group, `(size,)`, by name."""
        return {
            group.name: assign(logits.detach())[0]
            for group, logits in zip(self.groups, self.logits, strict=True)
        }


def free_orders(spec: PermutationSpec) -> list[Group]:
    """The groups of which every permutation is allowed, whatever the others do."""
    kinds = ("permutation", "scaled")
    return [group for group in lone_groups(spec.groups) if group.symmetry in kinds]


def sinkhorn(logits: Tensor, rounds: int = _ROUNDS) -> Tensor:
    """The doubly stochastic matrix of logits `(n, n)`, by dividing rows and columns in turn."""
    for _ in range(rounds):
        logits = logits - logits.logsumexp(1, keepdim=True)
        logits = logits - logits.logsumexp(0, keepdim=True)
    return logits.exp()


def straight_through(logits: Tensor) -> Tensor:
    """The matrix of the best assignment, with the gradient of the logits themselves."""
    order = assign(logits.detach())[0]
    hard = nn.functional.one_hot(order.to(logits.device), len(logits)).to(logits)
    return hard + (logits - logits.detach())


def _alike(
    group: Group, names: set[str], a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> Tensor:
    """Cosines of all that belongs to a's units and b's, `(size, size)`."""
    total, one, other = (torch.zeros(group.size, group.size).double() for _ in range(3))
    for member in group.members:
        if member.tensor in names:
            left, right = (rows(s[member.tensor].cpu(), member, member.index) for s in (a, b))
            add_products(total, left, right)
            add_products(one, left, left)
            add_products(other, right, right)
    length = torch.outer(one.diagonal(), other.diagonal()).sqrt()
    return torch.where(length > 0, total / length.clamp_min(1e-300), 0)
