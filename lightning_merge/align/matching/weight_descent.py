"""Coordinate descent over the groups of a network, by the weights of its units."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.align.matching.assignment import assign_blocks, assign_wholes
from lightning_merge.align.matching.weight_similarity import (
    add_products,
    inner,
    moved_parameters,
    rows,
)
from lightning_merge.progress import tracked
from lightning_merge.symmetry.index_maps import Permutation, from_sources, gather_all, to_sources
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.unit_group import Group, Place

# A step counts if it raises the objective by this share of |a| |b|. One misplaced unit of a
# hundred thousand weighs a hundred times more.
_TOLERANCE = 1e-7


class Descent:
    """b's parameters in their current order, and what was solved since they last changed.

    The parameters stay in their own precision; products are taken in float64, a block at a
    time. The scores of a group are kept, and follow what its neighbours change.
    """

    def __init__(
        self, spec: PermutationSpec, state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor]
    ) -> None:
        self.spec = spec
        names = moved_parameters(spec)
        self.a = {name: state_a[name].detach() for name in names}
        self.b = {name: state_b[name].detach().to(self.a[name].device) for name in names}
        self.families = families(spec)
        self.total: dict[Place, Tensor] = {}
        self.energy = {n: _norm(self.a[n]) * _norm(self.b[n]) for n in names}
        self.tolerance = _TOLERANCE * sum(self.energy.values())
        self.readers: dict[str, set[int]] = {name: set() for name in names}
        for number, family in enumerate(self.families):
            for name in self.tensors(family):
                self.readers[name].add(number)
        self.kept: dict[int, Tensor] = {}

    def tensors(self, family: Sequence[Group]) -> set[str]:
        """The parameters that a family moves."""
        return {m.tensor for g in family for m in g.members} & self.a.keys()

    def start(self) -> None:
        """Align from the network's ends inwards, unless b is better as it is."""
        before, b = self.value(), dict(self.b)
        aligned: set[int] = set()
        while len(aligned) < len(self.families):
            best: tuple[float, int, set[str]] = (-1.0, -1, set())
            for number, family in enumerate(self.families):
                if number in aligned:
                    continue
                tensors = self.tensors(family)
                known = {n for n in tensors if self.readers[n] <= aligned | {number}}
                energy = sum(self.energy[n] for n in known)
                share = energy / max(sum(self.energy[n] for n in tensors), 1e-300)
                if share > best[0]:
                    best = (share, number, known)
            _, number, known = best
            family = self.families[number]
            self.move(family, self.solve(family, known or self.tensors(family)))
            aligned.add(number)
        if self.value() < before:
            self.b, self.total = b, {}

    def value(self) -> float:
        """The objective."""
        return sum(inner(self.a[n], self.b[n]) for n in self.a)

    def run(self, generator: torch.Generator, progress: bool) -> Permutation:
        """Sweep over the groups until nothing changes."""
        self.start()
        clock, changed = 0, dict.fromkeys(self.a, 0)
        solved = [-1] * len(self.families)
        while True:
            before = clock
            order = torch.randperm(len(self.families), generator=generator).tolist()
            for number in tracked(order, "Matching weights", progress):
                family = self.families[number]
                tensors = self.tensors(family)
                if tensors and solved[number] >= max(changed[name] for name in tensors):
                    continue
                if self.step(number, tensors):
                    clock += 1
                    changed.update(dict.fromkeys(tensors, clock))
                # A group that reads one tensor along two axes is its own neighbour.
                solved[number] = clock if not self.is_quadratic(family) else clock - 1
            if clock == before:
                return from_sources(self.spec.groups, self.total)

    def step(self, number: int, tensors: set[str]) -> bool:
        """Solve a family and move it if that raises the objective; whether it did."""
        family = self.families[number]
        if len(family) > 1 or self.is_quadratic(family):
            return self.move(family, self.solve(family, tensors), self.tolerance)
        if number not in self.kept:
            self.kept[number] = self.scores(family[0], tensors)
        scores = self.kept.pop(number)
        p = assign_blocks(scores, family[0].blocks)
        gain = float((scores.gather(1, p[:, None])[:, 0] - scores.diagonal()).sum())
        if gain > self.tolerance:
            self.move(family, {family[0].name: p})
            scores = scores[:, p]
        self.kept[number] = scores
        return gain > self.tolerance

    def solve(self, family: Sequence[Group], tensors: set[str]) -> Permutation:
        """The best permutations of a family as far as these tensors tell."""
        scores = {group.name: self.scores(group, tensors) for group in family}
        parent, inside = family[0], list(family[1:])
        if not inside:
            return {parent.name: assign_blocks(scores[parent.name], parent.blocks)}
        own = self.scores(parent, tensors, inside)
        found = assign_wholes([(g, scores[g.name]) for g in inside], own)
        found[parent.name] = found.pop("")
        return found

    def move(self, family: Sequence[Group], found: Permutation, least: float | None = None) -> bool:
        """Permute b, if that raises the objective by at least so much; whether it did."""
        sources = to_sources(family, found)
        names = dict.fromkeys(name for name, *_ in sources if name in self.a)
        new = gather_all({name: self.b[name] for name in names}, sources)
        if not sources:
            return False
        if least is not None:
            before = sum(inner(self.a[n], self.b[n]) for n in new)
            if sum(inner(self.a[n], new[n]) for n in new) - before <= least:
                return False
        for name, tensor in new.items():
            self.follow(name, tensor)
        self.b.update(new)
        for place, source in sources.items():
            earlier = self.total.get(place)
            self.total[place] = source if earlier is None else earlier[source]
        return True

    def follow(self, name: str, new: Tensor) -> None:
        """Change the scores that are kept by what changes in one of b's tensors."""
        for number in self.readers[name] & self.kept.keys():
            for member in self.families[number][0].members:
                if member.tensor == name:
                    one, two, old = (
                        rows(tensor, member, member.index)
                        for tensor in (self.a[name], new, self.b[name])
                    )
                    add_products(self.kept[number], one, two, old)

    def is_quadratic(self, family: Sequence[Group]) -> bool:
        """Whether a family lies along two axes of one tensor, so that one solve may not do."""
        places = {m.place for g in family for m in g.members if m.tensor in self.a}
        return len({tensor for tensor, _, _ in places}) < len(places)

    def scores(self, group: Group, tensors: set[str], without: Sequence[Group] = ()) -> Tensor:
        """Inner products of a's units with b's over the given parameters, `(size, size)`.

        Positions of the groups in `without`, which lie inside this one's blocks, do not count.
        """
        total = torch.zeros(group.size, group.size, dtype=torch.float64)
        for member in group.members:
            if member.tensor not in tensors:
                continue
            inside = [m.index for g in without for m in g.members if m.place == member.place]
            index = member.apart_from(inside) if inside else member.index
            if index.numel() == 0:
                continue
            left = rows(self.a[member.tensor], member, index)
            add_products(total, left, rows(self.b[member.tensor], member, index))
        return total


def families(spec: PermutationSpec) -> list[list[Group]]:
    """Groups that are solved together: heads first, then the groups inside them."""
    result: list[list[Group]] = []
    inner: set[str] = set()
    for group in spec.groups:
        inside = group.inside(spec.groups)
        if inside:
            result.append([group, *inside])
            inner.update(g.name for g in (group, *inside))
    return result + [[group] for group in spec.groups if group.name not in inner]


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
