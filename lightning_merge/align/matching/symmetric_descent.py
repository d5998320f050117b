"""Coordinate descent over groups with all their symmetries, by weights.

Assignment for units, Procrustes for residual streams, and for heads an assignment by what the
best orthogonal maps inside each pair of them give. Both networks are canonical and balanced,
so that the maps inside heads are orthogonal ones.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from lightning_merge.align.matching.assignment import assign, assign_blocks
from lightning_merge.align.matching.map_solvers import nearest_orthogonal, products, rotation
from lightning_merge.align.matching.weight_descent import families
from lightning_merge.align.matching.weight_similarity import inner, moved_parameters
from lightning_merge.progress import tracked
from lightning_merge.symmetry.index_maps import gather_all, to_sources
from lightning_merge.symmetry.linear_maps import apply_linear, compose_maps, map_member, orders
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.unit_group import Group

Maps = dict[str, Tensor]

# Rounds go on while one raises the objective by these shares of |a| |b| and of all that was gained.
_TOLERANCE, _SHARE = 1e-6, 4e-3
_ROUNDS = 40
# A round is one sweep over the units, whose assignments take most of the time (the start has just
# solved them, so not the first), and then sweeps over what matrices move until one gains less than
# this share of the round.
_SETTLED = 0.3
_MATRICES = ("orthogonal", "invertible")


class SymmetricDescent:
    """b's parameters under the maps found so far; both state dicts are canonical and balanced."""

    def __init__(
        self, spec: PermutationSpec, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
    ) -> None:
        self.spec = spec
        names = moved_parameters(spec)
        first = a[names[0]].detach()
        like = first.to(torch.promote_types(first.dtype, torch.float32))
        self.a, self.b = ({name: s[name].detach().to(like) for name in names} for s in (a, b))
        self.dtype = like.dtype
        self.families = families(spec)
        self.families.sort(key=lambda family: family[0].symmetry != "orthogonal")
        self.tensors = [
            {m.tensor for g in family for m in g.members} & self.a.keys()
            for family in self.families
        ]
        self.streams = {k for k in range(len(self.families)) if self.is_stream(k)}
        self.readers: dict[str, set[int]] = {name: set() for name in names}
        for number, tensors in enumerate(self.tensors):
            for name in tensors:
                self.readers[name].add(number)
        self.energy = {n: float(self.a[n].norm() * self.b[n].norm()) for n in names}
        self.least = _TOLERANCE * sum(self.energy.values())
        self.maps: Maps = {}
        # Whether heads keep their partners: which of them belong together is sought once a round.
        self.paired = False
        # The products of streams, and for each tensor the maps of streams that it has followed.
        self.kept: dict[int, Tensor] = {}
        self.followed: dict[str, dict[int, Tensor]] = {name: {} for name in names}
        self.latest: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)

    def value(self, names: set[str] | None = None) -> float:
        """The objective: the inner product of both networks' parameters."""
        return sum(inner(self.a[n], self.current(n)) for n in (self.a if names is None else names))

    def run(
        self, generator: torch.Generator, given: Maps | None = None, progress: bool = False
    ) -> Maps:
        """Maps of b that bring it as close to a as can be; groups with `given` maps are left."""
        fixed = set(given or {})
        for number, family in enumerate(self.families):
            known = {g.name: given[g.name] for g in family if given and g.name in given}
            if known:
                self.move(number, known)
        open_ = [k for k, f in enumerate(self.families) if not fixed & {g.name for g in f}]
        first = self.value()
        self.start(open_, [k for k in range(len(self.families)) if k not in open_])
        value = self.value()
        moved = [k for k in open_ if any(g.symmetry in _MATRICES for g in self.families[k])]
        units = [k for k in open_ if k not in moved]
        for number in tracked(range(_ROUNDS), "Matching weights", progress):
            before, gain = value, float("inf")
            if number:
                value += self.sweep(units, generator)
            self.paired = False
            while gain > max(self.least, _SETTLED * (value - before)):
                gain = self.sweep(moved, generator)
                value += gain
                self.paired = True
            if number and value - before <= max(self.least, _SHARE * (value - first)):
                break
        return self.maps

    def sweep(self, numbers: Sequence[int], generator: torch.Generator) -> float:
        """Solve families in random order, streams first: the gain."""
        order = [numbers[k] for k in torch.randperm(len(numbers), generator=generator)]
        order.sort(key=lambda k: k not in self.streams)
        return sum(self.step(k, self.tensors[k]) for k in order)

    def start(self, open_: Sequence[int], known: Sequence[int]) -> None:
        """Align from what is fixed onwards, streams first, unless b is better as it is."""
        before, b, maps = self.value(), dict(self.b), dict(self.maps)
        followed = {name: dict(own) for name, own in self.followed.items()}
        aligned = set(known)
        rest = list(open_)
        while rest:
            streams = [k for k in rest if self.families[k][0].symmetry == "orthogonal"]
            number = max(streams or rest, key=lambda k: self.share(k, aligned))
            fitting = self.fitting(number, aligned)
            self.step(number, fitting or self.tensors[number], always=True)
            aligned.add(number)
            rest.remove(number)
        if self.value() < before:
            self.b, self.maps, self.followed, self.kept = b, maps, followed, {}

    def fitting(self, number: int, aligned: set[int]) -> set[str]:
        """The tensors of a family whose other axes are aligned."""
        return {n for n in self.tensors[number] if self.readers[n] <= aligned | {number}}

    def share(self, number: int, aligned: set[int]) -> float:
        """How much of a family's weights can be compared already."""
        fitting, every = (
            sum(self.energy[n] for n in names)
            for names in (self.fitting(number, aligned), self.tensors[number])
        )
        return fitting / max(every, 1e-300)

    def step(self, number: int, tensors: set[str], always: bool = False) -> float:
        """Solve a family by these tensors, and map b if that raises the objective: the gain."""
        family, names = self.families[number], self.tensors[number]
        if not tensors:
            return 0.0
        if number in self.streams:
            return self.turn(number, tensors)
        before = {name: self.current(name) for name in names}
        value, maps = self.value(names), dict(self.maps)
        self.move(number, self.solve(family, tensors))
        gain = self.value(names) - value
        if gain < 0 and not always:
            self.b.update(before)
            self.maps = maps
            return 0.0
        for other, scores in self.kept.items():
            changed = {n: self.b[n] - before[n] for n in names & self.tensors[other]}
            changed = {n: difference for n, difference in changed.items() if difference.any()}
            scores += products(self.families[other][0], self.a, changed, set(changed))
        return gain

    def turn(self, number: int, tensors: set[str]) -> float:
        """Rotate a stream by its products, which are kept: the gain."""
        [group] = self.families[number]
        scores = self.kept.pop(number, None)
        if scores is None or tensors != self.tensors[number]:
            b = {name: self.current(name) for name in tensors}
            scores = products(group, self.a, b, tensors)
        matrix = rotation(group, scores)
        self.move(number, {group.name: matrix})
        turned = scores @ matrix.to(scores).T
        if tensors == self.tensors[number]:
            self.kept[number] = turned
        return float(turned.trace() - scores.trace())

    def current(self, name: str) -> Tensor:
        """A tensor of b after the rotations of streams that it has not followed yet."""
        followed = self.followed[name]
        for number in self.readers[name] & self.streams:
            [group] = self.families[number]
            now, before = self.maps.get(group.name), followed.get(number)
            if now is None or now is before:
                continue
            # Most tensors of a stream have last followed the same map.
            if before is not self.latest[0] or now is not self.latest[1]:
                matrix = now if before is None else now @ before.mT
                self.latest = before, now, matrix.to(self.b[name])
            for member in group.members:
                if member.tensor == name and member.variance:
                    self.b[name] = map_member(self.b[name], member, None, self.latest[2])
            followed[number] = now
        return self.b[name]

    def is_stream(self, number: int) -> bool:
        """Whether a family is a stream that lies along one axis of each tensor."""
        [group, *inside] = self.families[number]
        places = {m.place for m in group.members if m.tensor in self.a}
        alone = not inside and len(places) == len(self.tensors[number])
        return alone and group.symmetry == "orthogonal"

    def solve(self, family: Sequence[Group], tensors: set[str]) -> Maps:
        """The best maps of a family while everything else stays."""
        group, inside = family[0], list(family[1:])
        if inside:
            return self.solve_heads(group, inside, tensors)
        scores = products(group, self.a, self.b, tensors)
        if group.symmetry == "orthogonal":
            return {group.name: rotation(group, scores)}
        if group.symmetry == "invertible":
            grid = scores.reshape(group.blocks, group.size // group.blocks, group.blocks, -1)
            return {group.name: nearest_orthogonal(grid.diagonal(dim1=0, dim2=2).movedim(-1, 0))}
        return {group.name: assign_blocks(scores, group.blocks)}

    def solve_heads(self, heads: Group, inside: Sequence[Group], tensors: set[str]) -> Maps:
        """Heads by the best that could be made of each pair, then the maps inside them."""
        count = heads.size
        grids = {}
        for group in inside:
            scores = products(group, self.a, self.b, tensors)
            grid = scores.reshape(count, group.size // count, count, -1)
            grids[group.name] = grid.transpose(1, 2).cpu().double()
        order = heads.identity() if self.paired else self.pairing(inside, grids)
        found = {heads.name: order}
        for group in inside:
            pairs = grids[group.name][torch.arange(count), order]
            if group.symmetry == "invertible":
                found[group.name] = nearest_orthogonal(pairs)
            else:
                width = group.size // count
                parts = [assign(pair)[0] + width * at for at, pair in enumerate(pairs)]
                found[group.name] = torch.cat(parts)
        return found

    def pairing(self, inside: Sequence[Group], grids: Mapping[str, Tensor]) -> Tensor:
        """The order of heads by the best that the units inside each pair could give."""
        count = len(grids[inside[0].name])
        total = torch.zeros(count, count, dtype=torch.float64)
        for group in inside:
            grid = grids[group.name]
            if group.symmetry == "invertible":
                total += torch.linalg.svdvals(grid).sum(-1)
                continue
            for pair in product(range(count), repeat=2):
                total[pair] += assign(grid[pair])[1]
        return assign(total)[0]

    def move(self, number: int, found: Maps) -> None:
        """Map b's parameters; those that a stream rotates follow when they are needed."""
        family = self.families[number]
        if number not in self.streams:
            part = gather_all(
                {name: self.current(name) for name in self.tensors[number]},
                to_sources(family, orders(family, found)),
            )
            # In the weights' own precision: what is composed is exact, and applied in the end.
            own = {n: m.to(self.dtype) if m.is_floating_point() else m for n, m in found.items()}
            apply_linear(part, family, own)
            self.b.update(part)
        earlier = {g.name: self.maps[g.name] for g in family if g.name in self.maps}
        composed = compose_maps(family, earlier, found)
        self.maps.update({g.name: composed[g.name] for g in family})
