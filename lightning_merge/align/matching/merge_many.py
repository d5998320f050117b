"""MergeMany: each network is matched to the mean of the others, in turn.

Source: Ainsworth et al. 2023, "Git Re-Basin", appendix A.10.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_merge.align.matching.agreement import agreement, states_of, to_first
from lightning_merge.align.matching.joint_matching import JointMatching
from lightning_merge.align.matching.map_solvers import balance
from lightning_merge.align.matching.matching import matchings, nothing_to_align
from lightning_merge.align.matching.symmetric_descent import Maps, SymmetricDescent
from lightning_merge.align.matching.symmetric_maps import check_symmetries
from lightning_merge.align.matching.weight import WeightMatching
from lightning_merge.align.matching.weight_similarity import moved_parameters
from lightning_merge.progress import tracked
from lightning_merge.symmetry.spec import Network, PermutationSpec, Symmetries

# What the objective must rise by, relative to its largest possible value, to be a step.
_TOLERANCE = 1e-7


@matchings.register(paper="Ainsworth et al. 2023, Git Re-Basin")
class MergeMany(JointMatching):
    """Match each network to the mean of the others, in turn, until nothing changes.

    Every step raises the agreement of all pairs, so it ends. No network is preferred. The
    maps found are into one common universe, hence consistent along any cycle.

    With `symmetries="all"` every network is brought into its canonical form and balanced, so
    that the maps left are permutations and orthogonal ones, under which the agreement means the
    same for all. They start in a chain, each matched to the mean of those before it, as the mean
    of networks that are turned against each other has nothing to be matched to.

    Args:
        seed: Of the order of the networks and of the groups within a match.
        sweeps: At most so many rounds over all networks.
        symmetries: `permutation`, or `all` that the spec's groups have.
    """

    label: ClassVar[str] = "MergeMany"

    def __init__(
        self, seed: int = 0, sweeps: int = 100, symmetries: Symmetries = "permutation"
    ) -> None:
        self.seed, self.sweeps, self.symmetries = seed, sweeps, symmetries

    def match(
        self, spec: PermutationSpec, networks: Sequence[Network], progress: bool = False
    ) -> list[Maps]:
        """The permutation of each network into the order of the first.

        With all symmetries, the maps that bring its canonical form onto that of the first: for
        `spec.transform(spec.canonical(network), maps)`.
        """
        states = states_of(spec, networks)
        if nothing_to_align(spec):
            return [spec.identity() for _ in states]
        check_symmetries(spec, self.symmetries)
        if self.symmetries == "permutation":
            return to_first(spec, self._ascend(spec, states, progress))
        states = [spec.canonical(state) for state in states]
        found = [balance(spec.groups, state) for state in states]
        states = [spec.transform(s, maps) for s, maps in zip(states, found, strict=True)]
        for index in range(1, len(states)):
            maps = self._onto_mean(spec, states[:index], states[index])
            states[index] = spec.transform(states[index], maps)
            found[index] = spec.compose(found[index], maps)
        changes = self._ascend(spec, states, progress)
        return to_first(
            spec, [spec.compose(maps, c) for maps, c in zip(found, changes, strict=True)]
        )

    def _ascend(
        self, spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]], progress: bool
    ) -> list[Maps]:
        """The maps to which matching each to the mean of the others leads."""
        generator = torch.Generator().manual_seed(self.seed)
        current = [dict(state) for state in states]
        found: list[Maps] = [spec.identity() for _ in states]
        best = agreement(spec, current)
        least = _TOLERANCE * _largest(spec, states)
        for _ in range(self.sweeps):
            before = best
            order = torch.randperm(len(states), generator=generator).tolist()
            for index in tracked(order, "Matching each to the mean of the others", progress):
                others = [state for i, state in enumerate(current) if i != index]
                maps = self._onto_mean(spec, others, current[index])
                trial = list(current)
                trial[index] = spec.transform(current[index], maps)
                value = agreement(spec, trial)
                # Units that are alike could change places for ever.
                if value > best + least:
                    current, best = trial, value
                    found[index] = spec.compose(found[index], maps)
            if best == before:
                break
        return found

    def _onto_mean(
        self,
        spec: PermutationSpec,
        others: Sequence[Mapping[str, Tensor]],
        state: Mapping[str, Tensor],
    ) -> Maps:
        """The maps of a network onto the mean of others."""
        mean = _mean(spec, others)
        if self.symmetries == "permutation":
            return WeightMatching(self.seed).match(spec, mean, state)
        generator = torch.Generator().manual_seed(self.seed)
        return SymmetricDescent(spec, mean, state).run(generator)


def _largest(spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]]) -> float:
    """A bound of the agreement: all networks equal."""
    squares = [
        sum(float(state[name].detach().double().square().sum()) for name in moved_parameters(spec))
        for state in states
    ]
    return max(squares) * len(states) * (len(states) - 1) / 2


def _mean(spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the parameters that count; the rest is the first one's."""
    result = dict(states[0])
    for name in moved_parameters(spec):
        result[name] = torch.stack([state[name].detach().double() for state in states]).mean(0)
    return result
