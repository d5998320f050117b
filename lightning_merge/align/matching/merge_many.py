"""MergeMany: each network is matched to the mean of the others, in turn.

Source: Ainsworth et al. 2023, "Git Re-Basin", appendix A.10.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.align.matching.agreement import agreement, states_of, to_first
from lightning_merge.align.matching.weight import WeightMatching
from lightning_merge.align.matching.weight_similarity import moved_parameters
from lightning_merge.align.spec.index_maps import Permutation
from lightning_merge.align.spec.spec import Network, PermutationSpec
from lightning_merge.progress import tracked

# What the objective must rise by, relative to its largest possible value, to be a step.
_TOLERANCE = 1e-7


class MergeMany:
    """Match each network to the mean of the others, in turn, until nothing changes.

    Every step raises the agreement of all pairs, so it ends. No network is preferred. The
    permutations found are into one common order, hence consistent along any cycle.

    Args:
        seed: Of the order of the networks and of the groups within a match.
        sweeps: At most so many rounds over all networks.
    """

    def __init__(self, seed: int = 0, sweeps: int = 100) -> None:
        self.seed, self.sweeps = seed, sweeps

    def match(
        self,
        spec: PermutationSpec,
        networks: Sequence[Network],
        progress: bool = False,
    ) -> list[Permutation]:
        """The permutation of each network into the order of the first.

        Args:
            spec: The spec of their architecture.
            networks: The networks, or their state dicts; none is changed.
            progress: Whether to show progress bars.

        Raises:
            AlignmentError: There are fewer than two networks, or one is of another spec.
        """
        states = states_of(spec, networks)
        generator = torch.Generator().manual_seed(self.seed)
        matching = WeightMatching(self.seed)
        current = [dict(state) for state in states]
        found = [spec.identity() for _ in states]
        best = agreement(spec, current)
        least = _TOLERANCE * _largest(spec, states)
        for _ in range(self.sweeps):
            before = best
            order = torch.randperm(len(states), generator=generator).tolist()
            for index in tracked(order, "Matching each to the mean of the others", progress):
                others = [state for i, state in enumerate(current) if i != index]
                mean = _mean(spec, others)
                permutation = matching.match(spec, mean, current[index])
                trial = list(current)
                trial[index] = spec.apply(current[index], permutation)
                value = agreement(spec, trial)
                # Units that are alike could change places for ever.
                if value > best + least:
                    current, best = trial, value
                    found[index] = spec.compose(found[index], permutation)
            if best == before:
                break
        return to_first(spec, found)


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
