"""Maps of b's units as parameters that gradients reach: what learned matching trains.

Source: Theus et al. 2025, "Generalized Linear Mode Connectivity for Transformers", with matrix
exponentials in place of their projections.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_merge.align.matching.learned_orders import LearnedOrders, Units
from lightning_merge.align.matching.map_solvers import balance, rotation
from lightning_merge.align.matching.symmetric_descent import Maps
from lightning_merge.checkpoint import tensors_of
from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.linear_maps import (
    complement_of_ones,
    compose_maps,
    inverse_maps,
    keeping_ones,
    map_member,
)
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.unit_group import Group

State = Mapping[str, Tensor]


class LearnedMaps(nn.Module):
    """A rotation for each stream, a matrix for each head and a factor for each scaled unit.

    They start at the maps that are given; heads keep the order that those give them, and so do
    units, unless `units` says how their order is to be learned.
    A rotation is `(Q exp(S - S^T) Q^T + 1 1^T / d) O` with `S` trained from zero, so that it
    stays orthogonal; matrices inside heads are free, factors are exponentials. Both networks
    are canonical, and balanced by a's gauge.

    Args:
        spec: A spec with all symmetries.
        a: The state dict that stays.
        b: The state dict to align.
        start: Maps of canonical b onto canonical a, from a closed form.
        units: `fixed`, `sinkhorn` or `straight-through`; see `learned_orders`.

    Raises:
        AlignmentError: No group of the spec has anything to learn.
    """

    def __init__(
        self, spec: PermutationSpec, a: State, b: State, start: Maps, units: Units = "fixed"
    ) -> None:
        super().__init__()
        self.spec, self.begin = spec, dict(start)
        canonical = spec.canonical(a)
        self.gauge = balance(spec.groups, canonical)
        begin = compose_maps(spec.groups, self.begin, self.gauge)
        self.a = tensors_of(spec.transform(canonical, self.gauge))
        self.b = tensors_of(spec.transform(spec.canonical(b), begin))
        self.learned = [group for group in spec.groups if group.symmetry != "permutation"]
        self.orders = LearnedOrders(spec, self.a, self.b, units)
        if not self.learned and not self.orders.groups:
            raise AlignmentError(
                "there is nothing to learn: the network's units allow permutations only, see "
                "spec.frozen; take WeightMatching or ActivationMatching, or set units"
            )
        like = next(t for t in self.a.values() if t.is_floating_point())
        self.values = nn.ParameterList(_start(group, like) for group in self.learned)
        self.bases = {
            group.name: (complement_of_ones(group.size).to(like), keeping_ones(group).to(like))
            for group in self.learned
            if group.keeps_ones
        }

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        for state in (self.a, self.b):
            state.update({name: fn(tensor) for name, tensor in state.items()})
        self.bases = {name: (fn(q), fn(ones)) for name, (q, ones) in self.bases.items()}
        return self

    def matrices(self) -> Maps:
        """The present maps after those of the start: matrices, and factors `(size,)`."""
        found = {}
        for group, value in zip(self.learned, self.values, strict=True):
            if group.symmetry == "scaled":
                found[group.name] = value.exp()
            elif group.symmetry == "invertible":
                found[group.name] = value
            else:
                turn = torch.linalg.matrix_exp(value - value.mT)
                if group.keeps_ones:
                    basis, ones = self.bases[group.name]
                    turn = basis @ turn @ basis.mT + ones
                found[group.name] = turn[None]
        return found

    def mapped(self) -> dict[str, Tensor]:
        """The state of b under the present maps, through which gradients reach them."""
        state = self.orders.applied(self.b)
        maps = self.matrices()
        for group in self.learned:
            own = maps[group.name]
            scaled = group.symmetry == "scaled"
            dual = 1 / own if scaled else own
            if group.symmetry == "invertible":
                dual = torch.linalg.inv(own).mT
            for member in group.members:
                if member.variance:
                    one = own if member.variance > 0 else dual
                    pair = (one, None) if scaled else (None, one)
                    state[member.tensor] = map_member(state[member.tensor], member, *pair)
        return state

    def merged(self, share: float | Tensor = 0.5) -> dict[str, Tensor]:
        """The point of the line between a and b under the present maps, `share` being a's."""
        return {
            name: share * self.a[name] + (1 - share) * tensor
            if tensor.is_floating_point() or tensor.is_complex()
            else self.a[name]
            for name, tensor in self.mapped().items()
        }

    def maps(self) -> Maps:
        """The maps of canonical b onto canonical a, in float64, rotations made exact."""
        now = {}
        for group in self.learned:
            own = self.matrices()[group.name].detach().cpu().double()
            if group.symmetry == "orthogonal":
                now[group.name] = rotation(group, own[0])[None]
            else:
                now[group.name] = own
        for name, order in self.orders.found().items():
            # Units are put in order first, then multiplied.
            factors = now.get(name)
            now[name] = order if factors is None else torch.stack([order.double(), factors])
        groups = self.spec.groups
        found = compose_maps(groups, compose_maps(groups, self.begin, self.gauge), now)
        return compose_maps(groups, found, inverse_maps(groups, self.gauge))


def distillation(logits: Tensor, teachers: Tensor) -> Tensor:
    """Cross-entropy of logits `(B, C)` against the probabilities of the teachers' logits."""
    return -(teachers.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def _start(group: Group, like: Tensor) -> nn.Parameter:
    width = group.size // group.blocks
    if group.symmetry == "scaled":
        value = torch.zeros(group.size)
    elif group.symmetry == "invertible":
        value = torch.eye(width).repeat(group.blocks, 1, 1)
    else:
        side = group.size - 1 if group.keeps_ones else group.size
        value = torch.zeros(side, side)
    return nn.Parameter(value.to(like))
