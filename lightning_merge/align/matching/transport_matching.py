"""OT Fusion: units of b are carried onto a's by optimal transport, softly, at any widths.

Source: Singh and Jaggi 2020, "Model Fusion via Optimal Transport".
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_merge.align.matching.matching import Matching, Score, matchings, nothing_to_align
from lightning_merge.align.matching.transport_places import (
    Place,
    carried,
    places_of,
    same_named,
    simple_groups,
    unit_rows,
)
from lightning_merge.align.matching.transport_plan import transport_plan
from lightning_merge.align.matching.weight_descent import families
from lightning_merge.align.matching.weight_similarity import check_finite_weights
from lightning_merge.errors import AlignmentError
from lightning_merge.progress import tracked
from lightning_merge.symmetry.spec import Network, PermutationSpec
from lightning_merge.symmetry.unit_group import Group


@matchings.register(paper="Singh and Jaggi 2020, Model Fusion via Optimal Transport")
class TransportMatching(Matching):
    """Carry b's units onto a's by plans of optimal transport between their incoming weights.

    From the inputs onwards, each group's plan `T` minimises `sum(T * squared distances)` of the
    weights that make its units, those of b being carried onto a's units in front already; all
    units have the same mass. Later sweeps do it again, by all that makes them. With `n` units
    of a and `m` of b, weights that make units become `n T W` (means of b's units), and those that
    read them `W (m T)^T`, so that each unit of b hands on all of its effect, to several units
    of a where its mass is divided. At equal widths both are the paper's rule.

    **b's function changes**: a unit that is a mean of several is none of them, and no nonlinear
    function commutes with a mean. It stays in two cases: with `epsilon` 0 and equal widths, where
    the plan is a permutation; and where the units that are joined are copies of each other.
    Statistics of BatchNorm are means like weights: estimate them anew after merging.

    Heads are carried as wholes, compared by the plans between the units inside each pair of them.
    Units of grouped convolutions, of grouped queries, of normed queries and keys, and those that
    several attention weights pool, stay as they are, with their heads, and a warning says so.

    Args:
        epsilon: How soft plans are, relative to the mean distance; 0 for exact plans.
        sweeps: How often each group is solved.

    Raises:
        AlignmentError: `epsilon` is negative, or there is no sweep.
    """

    needs_data: ClassVar[bool] = False
    keeps_function: ClassVar[bool] = False
    label: ClassVar[str] = "OT Fusion"

    def __init__(self, epsilon: float = 0.01, sweeps: int = 2) -> None:
        if not epsilon >= 0 or sweeps < 1:
            raise AlignmentError(
                f"epsilon {epsilon}, sweeps {sweeps}: epsilon is 0 or more, sweeps 1 or more"
            )
        self.epsilon, self.sweeps = epsilon, sweeps

    def align(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],  # noqa: ARG002 - weights are enough
        *,
        score: Score | None = None,  # noqa: ARG002 - there is nothing to choose
        progress: bool = False,
    ) -> dict[str, Tensor]:
        """The state dict of b, its units carried onto a's; `batches` is not read."""
        nothing_to_align(spec)
        return self.fuse(spec, model_a, model_b, progress=progress)

    def fuse(
        self,
        spec: PermutationSpec,
        a: Network,
        b: Network,
        spec_b: PermutationSpec | None = None,
        progress: bool = False,
    ) -> dict[str, Tensor]:
        """The state dict of b in a's shapes, its units carried onto a's.

        Args:
            spec: The spec of a.
            a: The network whose units are the aim, or its state dict.
            b: The other network of the same family, wider or narrower, or its state dict; neither
                is changed.
            spec_b: The spec of b, where its widths are not a's.
            progress: Whether to show a progress bar.

        Returns:
            New tensors with the shapes, dtypes and devices of a's.

        Raises:
            AlignmentError: The networks are not of one family, or differ in size where no units
                can be moved.
        """
        fusion = _Fusion(self.epsilon, spec, spec_b or spec, a, b)
        return fusion.result(fusion.solve(self.sweeps, progress))

    def plans(
        self,
        spec: PermutationSpec,
        a: Network,
        b: Network,
        spec_b: PermutationSpec | None = None,
        progress: bool = False,
    ) -> dict[str, Tensor]:
        """The plan of each group, `(a's units, b's units)`, float64; the arguments are `fuse`'s.

        Each adds up to 1; its rows to one over the number of a's units, its columns to one over
        that of b's.
        """
        return _Fusion(self.epsilon, spec, spec_b or spec, a, b).solve(self.sweeps, progress)


class _Fusion:
    """Two networks, and the places of their units."""

    def __init__(
        self, epsilon: float, spec: PermutationSpec, spec_b: PermutationSpec, a: Network, b: Network
    ) -> None:
        self.epsilon, self.spec, self.spec_b = epsilon, spec, spec_b
        self.a, self.b = spec.state_of(a), spec_b.state_of(b)
        check_finite_weights(spec, [self.a])
        check_finite_weights(spec_b, [self.b])
        self.places = places_of(spec, spec_b)
        simple = {group.name for group in simple_groups(spec)}
        left = [group.name for group in spec.groups if group.name not in simple]
        if left:
            warnings.warn(
                f"OT Fusion leaves {len(left)} of {len(spec.groups)} groups of units in their "
                f"order ({', '.join(left[:3])}): groups lie across each other there; permute the "
                "network first, by WeightMatching",
                stacklevel=4,
            )
        moved = {group for places in self.places.values() for p in places for group in p.groups}
        order = {group.name: at for at, group in enumerate(spec.groups)}
        chosen = [f for f in families(spec) if any(g.name in moved for g in f)]
        self.families = sorted(chosen, key=lambda family: order[family[0].name])

    def solve(self, sweeps: int, progress: bool) -> dict[str, Tensor]:
        """The plans of all groups."""
        plans: dict[str, Tensor] = {}
        rest = list(self.families)
        for _ in tracked(range(len(rest)), "Transporting units", progress):
            family = self._next(rest, plans)
            plans.update(self._solved(family, plans))
            rest.remove(family)
        for _ in range(sweeps - 1):
            for family in self.families:
                plans.update(self._solved(family, plans))
        return plans

    def result(self, plans: dict[str, Tensor]) -> dict[str, Tensor]:
        """B's state dict under these plans."""
        state = {}
        sources = {name: source for copy in self.spec.copies for name, source in copy.items()}
        for name, like in self.a.items():
            if name not in self.b:
                raise AlignmentError(
                    f"{name!r} is not in the other network: are they of one family?"
                )
            tensor, moved = self.b[name], sources.get(name, name)
            if not isinstance(tensor, Tensor):
                state[name] = tensor
                continue
            if tensor.is_floating_point() and moved in self.places:
                tensor = carried(tensor, self.places[moved], plans, name)
            if tensor.shape != like.shape:
                raise AlignmentError(
                    f"{name!r} has shape {tuple(tensor.shape)}, which no group of units brings to "
                    f"{tuple(like.shape)}"
                )
            state[name] = tensor.detach().to(like, copy=True)
        return state

    def _next(self, rest: Sequence[list[Group]], plans: dict[str, Tensor]) -> list[Group]:
        """The first family whose weights can be compared: those in front of it are solved."""
        for readers in (False, True):
            for family in rest:
                if any(True for _ in self._fitting(family, plans, readers)):
                    return family
        raise AlignmentError(
            f"group {rest[0][0].name!r}: no weights of its units can be compared, as all layers "
            "next to it differ as well"
        )

    def _fitting(
        self, family: Sequence[Group], plans: dict[str, Tensor], readers: bool
    ) -> Iterator[tuple[str, Place]]:
        """Tensors, and their places, that make or read a family's units, the rest solved."""
        names = {group.name for group in family}
        for tensor, places in self.places.items():
            if tensor in self.spec.buffers or (not readers and self.a[tensor].ndim < 2):
                continue
            for place in places:
                own = any(u.group in names and u.reads == readers for u in place.units)
                others = {g for p in places if p is not place for g in p.groups}
                if own and others <= plans.keys():
                    yield tensor, place

    def _solved(self, family: Sequence[Group], plans: dict[str, Tensor]) -> dict[str, Tensor]:
        """The plans of a family while everything else stays."""
        found = list(self._fitting(family, plans, False)) or list(
            self._fitting(family, plans, True)
        )
        costs = {
            group.name: torch.zeros(
                group.size, same_named(self.spec_b, group).size, dtype=torch.float64
            )
            for group in family
        }
        for tensor, place in found + self._vectors(family):
            one = unit_rows(self.a[tensor].detach().cpu().double(), place, place.shape_a)[1]
            carried_b = carried(self.b[tensor], self.places[tensor], plans, tensor, skip=place)
            two = unit_rows(carried_b, place, place.shape_b)[1]
            for units in place.units:
                if units.group in costs:
                    left = one[units.index_a].flatten(1)
                    right = two[units.index_b].flatten(1)
                    if left.shape[1] != right.shape[1]:
                        raise AlignmentError(
                            f"{tensor!r} has other widths in the two networks where units stay as "
                            "they are, see TransportMatching: give networks that agree there"
                        )
                    costs[units.group] += torch.cdist(left, right).square()
        if len(family) > 1 or family[0].blocks > 1:
            return self._heads(family, costs)
        (name,) = costs
        return {name: transport_plan(costs[name], self.epsilon)}

    def _vectors(self, family: Sequence[Group]) -> list[tuple[str, Place]]:
        """The biases and scales of a family's units."""
        names = {group.name for group in family}
        return [
            (tensor, place)
            for tensor, places in self.places.items()
            if self.a[tensor].ndim == 1 and tensor not in self.spec.buffers
            for place in places
            if place.groups & names
        ]

    def _heads(self, family: Sequence[Group], costs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A plan of heads by the plans inside each pair of them, and these plans put together."""
        heads = family[0] if len(family) > 1 else None
        inside = [group for group in family if group is not heads]
        counts = [inside[0].blocks, same_named(self.spec_b, inside[0]).blocks]
        total = costs[heads.name] if heads else torch.zeros(*counts, dtype=torch.float64)
        best = {}
        for group in inside:
            rows, columns = (n // k for n, k in zip(costs[group.name].shape, counts, strict=True))
            grid = costs[group.name].reshape(counts[0], rows, counts[1], columns).transpose(1, 2)
            plans = torch.stack(
                [torch.stack([transport_plan(c, self.epsilon) for c in row]) for row in grid]
            )
            total = total + (plans * grid).sum((2, 3)) * rows
            best[group.name] = plans
        if heads is None:
            if counts[0] != counts[1]:
                raise AlignmentError(
                    f"group {inside[0].name!r}: {counts[1]} blocks that stay in place "
                    f"cannot become {counts[0]}"
                )
            outer = torch.eye(counts[0], dtype=torch.float64) / counts[0]
        else:
            outer = transport_plan(total, self.epsilon)
        found = {
            name: (outer[:, :, None, None] * plans).transpose(1, 2).reshape(costs[name].shape)
            for name, plans in best.items()
        }
        return found | ({heads.name: outer} if heads else {})
