"""Aligning more than two networks with each other.

Sources: MergeMany, Ainsworth et al. 2023, "Git Re-Basin", appendix A.10; C2M3, Crisostomi
et al. 2024, "Cycle-Consistent Multi-Model Merging".
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_merge.align.assignment import assign_blocks
from lightning_merge.align.group import Group, Permutation, outermost_first
from lightning_merge.align.matching import Matching
from lightning_merge.align.spec import PermutationSpec
from lightning_merge.align.weight import WeightMatching, moved_parameters
from lightning_merge.errors import AlignmentError

# What the objective must rise by, relative to its largest possible value, to be a step.
_TOLERANCE = 1e-7

StateDict = dict[str, Tensor]


def all_to_one(
    matching: Matching,
    spec: PermutationSpec,
    models: Sequence[nn.Module],
    batches: Iterable[Any],
    reference: int = 0,
    progress: bool = False,
) -> list[StateDict]:
    """The state dicts of all networks, each aligned to one of them on its own.

    Args:
        matching: How a pair is aligned.
        spec: The spec of their architecture.
        models: The networks; none is changed.
        batches: Iterated once for each other network, so no bare iterator.
        reference: The index of the network that stays as it is.
        progress: Whether to show progress bars.

    Raises:
        AlignmentError: There is no network of that index, or `batches` is used up after
            the first network.
    """
    if not 0 <= reference < len(models):
        raise AlignmentError(f"there is no network {reference} among {len(models)}")
    if matching.needs_data and len(models) > 2 and iter(batches) is batches:
        raise AlignmentError("each network reads the batches anew: give a list or a loader")
    aligned = []
    for index, model in enumerate(models):
        if index == reference:
            aligned.append({n: t.detach().clone() for n, t in model.state_dict().items()})
        else:
            aligned.append(matching.align(spec, models[reference], model, batches, progress))
    return aligned


def agreement(spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]]) -> float:
    """The inner products of all pairs' parameters, summed, in float64: what is maximised here.

    Only parameters that some group moves count; of two networks it is weight matching's
    objective.
    """
    total = 0.0
    for name in moved_parameters(spec):
        tensors = [state[name].detach().double() for state in states]
        together = torch.stack(tensors).sum(0).square().sum()
        total += float(together - sum(tensor.square().sum() for tensor in tensors)) / 2
    return total


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
        self, spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]]
    ) -> list[Permutation]:
        """The permutation of each network into the order of the first.

        Raises:
            AlignmentError: There are fewer than two networks, or one is of another spec.
        """
        _check(spec, states)
        generator = torch.Generator().manual_seed(self.seed)
        matching = WeightMatching(self.seed)
        current = [dict(state) for state in states]
        found = [spec.identity() for _ in states]
        best = agreement(spec, current)
        least = _TOLERANCE * _largest(spec, states)
        for _ in range(self.sweeps):
            before = best
            for index in torch.randperm(len(states), generator=generator).tolist():
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


class CycleConsistentMatching:
    """C2M3: permutations of all networks into one universe, all groups at once.

    Frank-Wolfe on the agreement of all pairs over doubly stochastic matrices, one for each
    network and group: the gradient's best permutations give the direction for all of them
    together, and the step along it is exact, the agreement being a polynomial of it. In
    the end each matrix is rounded to a permutation. It starts from all networks matched to
    the first by their weights, and returns that where rounding falls below it. Going from
    network to network around any cycle leads back to the identity, by construction.

    A step costs about as much as a few sweeps of weight matching over all networks. The
    groups of grouped convolutions, as wholes, stay as the start has placed them (see
    `is_interlocked`).

    Args:
        steps: At most so many steps.
        tolerance: The relative rise of the agreement that ends them.
        seed: Of the weight matching at the start.
    """

    def __init__(self, steps: int = 50, tolerance: float = 1e-5, seed: int = 0) -> None:
        self.steps, self.tolerance, self.seed = steps, tolerance, seed

    def match(
        self, spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]]
    ) -> list[Permutation]:
        """The permutation of each network into the order of the first.

        Raises:
            AlignmentError: There are fewer than two networks, or one is of another spec.
        """
        _check(spec, states)
        matching = WeightMatching(self.seed)
        start = [spec.identity()]
        start += [matching.match(spec, states[0], state) for state in states[1:]]
        placed = [spec.apply(s, p) for s, p in zip(states, start, strict=True)]
        changes = self._ascend(spec, placed)
        moved = [spec.apply(s, p) for s, p in zip(placed, changes, strict=True)]
        if agreement(spec, moved) > agreement(spec, placed):
            start = [spec.compose(p, c) for p, c in zip(start, changes, strict=True)]
        return to_first(spec, start)

    def _ascend(
        self, spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]]
    ) -> list[Permutation]:
        """The permutations to which Frank-Wolfe leads from where the networks are."""
        names = moved_parameters(spec)
        weights = [{name: state[name].detach().double() for name in names} for state in states]
        groups = [group for group in spec.groups if not is_interlocked(group)]
        identity = {g.name: torch.eye(g.size, dtype=torch.float64) for g in groups}
        soft = [dict(identity) for _ in states]
        for _ in range(self.steps):
            value, slopes = _slopes(groups, weights, soft)
            corners = [_corner(groups, slope) for slope in slopes]
            step, rise = _best_step(groups, weights, soft, corners, value)
            if rise <= self.tolerance * abs(value):
                break
            soft = [_between(a, b, step) for a, b in zip(soft, corners, strict=True)]
        return [_rounded(groups, matrices) for matrices in soft]


def to_first(spec: PermutationSpec, permutations: Sequence[Permutation]) -> list[Permutation]:
    """The same agreement of all with all, in the order of the first network."""
    back = spec.inverse(permutations[0])
    return [spec.identity()] + [spec.compose(p, back) for p in permutations[1:]]


def _check(spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]]) -> None:
    if len(states) < 2:
        raise AlignmentError(f"aligning needs two networks or more, there are {len(states)}")
    for state in states:
        spec.check(state)


def _largest(spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]]) -> float:
    """A bound of the agreement: all networks equal."""
    squares = [
        sum(float(state[name].detach().double().square().sum()) for name in moved_parameters(spec))
        for state in states
    ]
    return max(squares) * len(states) * (len(states) - 1) / 2


def _mean(spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]]) -> StateDict:
    """The mean of the parameters that count; the rest is the first one's."""
    result = dict(states[0])
    for name in moved_parameters(spec):
        result[name] = torch.stack([state[name].detach().double() for state in states]).mean(0)
    return result


def _rounded(groups: Sequence[Group], matrices: Mapping[str, Tensor]) -> Permutation:
    """The permutations whose matrices have the largest inner product with these."""
    return {g.name: assign_blocks(matrices[g.name], g.blocks) for g in groups}


def _corner(groups: Sequence[Group], slope: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The permutation matrices in the direction of a slope; row `i` says where `i` is from."""
    return {
        name: torch.eye(len(permutation), dtype=torch.float64)[permutation]
        for name, permutation in _rounded(groups, slope).items()
    }


def is_interlocked(group: Group) -> bool:
    """Whether a group moves one tensor along two sets of axes that share one.

    So the groups of a grouped convolution do, as wholes, with their outputs and their
    inputs: one permutation of the shared axis, which two matrices cannot stand for. They
    stay as the weight matching at the start has placed them.
    """
    places = list({member.place for member in group.members})
    return any(
        one[0] == other[0] and set(one[2]) & set(other[2])
        for index, one in enumerate(places)
        for other in places[:index]
    )


def _between(a: dict[str, Tensor], b: dict[str, Tensor], step: float) -> dict[str, Tensor]:
    return {name: torch.lerp(a[name], b[name], step) for name in a}


def mix(
    groups: Sequence[Group], weights: Mapping[str, Tensor], matrices: Mapping[str, Tensor]
) -> StateDict:
    """The parameters with each group's units mixed by a matrix; what a permutation's does too."""
    result = dict(weights)
    for group in outermost_first(groups):
        for member in group.members:
            if member.tensor not in result:
                continue
            tensor = result[member.tensor]
            count = len(member.axes)
            moved = tensor.reshape(member.shape).movedim(member.axes, tuple(range(count)))
            rows = moved.reshape(member.length, -1)
            index = member.index.to(tensor.device)
            matrix = matrices[group.name].to(tensor.device)
            mixed = (matrix @ rows[index].flatten(1)).reshape(-1, rows.shape[1])
            new = rows.index_copy(0, index.reshape(-1), mixed).reshape(moved.shape)
            result[member.tensor] = new.movedim(tuple(range(count)), member.axes).reshape(
                tensor.shape
            )
    return result


def _value(
    groups: Sequence[Group],
    weights: Sequence[Mapping[str, Tensor]],
    soft: Sequence[Mapping[str, Tensor]],
) -> Tensor:
    """The agreement of all networks, each mixed by its matrices."""
    mixed = [mix(groups, w, m) for w, m in zip(weights, soft, strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    for name in mixed[0]:
        tensors = [state[name] for state in mixed]
        own = torch.stack([tensor.square().sum() for tensor in tensors]).sum()
        together = torch.stack(tensors).sum(0).square().sum()
        total = total + ((together - own) / 2).cpu()
    return total


def _slopes(
    groups: Sequence[Group],
    weights: Sequence[Mapping[str, Tensor]],
    soft: Sequence[dict[str, Tensor]],
) -> tuple[float, list[dict[str, Tensor]]]:
    """The agreement, and its derivative by every entry of every matrix."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [
            {name: matrix.clone().requires_grad_() for name, matrix in matrices.items()}
            for matrices in soft
        ]
        value = _value(groups, weights, leaves)
        flat = [matrix for matrices in leaves for matrix in matrices.values()]
        slopes = torch.autograd.grad(value, flat, allow_unused=True)
    by_id = dict(zip(map(id, flat), slopes, strict=True))
    result = []
    for matrices in leaves:
        found = {name: by_id[id(matrix)] for name, matrix in matrices.items()}
        result.append(
            {n: torch.zeros_like(matrices[n]) if s is None else s for n, s in found.items()}
        )
    return value.item(), result


def _best_step(
    groups: Sequence[Group],
    weights: Sequence[Mapping[str, Tensor]],
    soft: Sequence[dict[str, Tensor]],
    corners: Sequence[dict[str, Tensor]],
    value: float,
) -> tuple[float, float]:
    """The step between 0 and 1 that raises the agreement most, and by how much.

    A tensor of two groups enters a product of two networks with degree four; five values
    give that polynomial exactly. Deeper nesting (heads and the units in them) has a higher
    degree, so the step that is returned is one that was evaluated.
    """
    known = {0.0: value}
    with torch.no_grad():
        for step in (0.25, 0.5, 0.75, 1.0):
            known[step] = _at(groups, weights, soft, corners, step)
        curve = np.polynomial.Polynomial.fit(list(known), list(known.values()), 4)
        turns = [float(r.real) for r in curve.deriv().roots() if abs(r.imag) < 1e-9]
        inside = [turn for turn in turns if 0 < turn < 1]
        if inside:
            best = max(inside, key=lambda turn: float(curve(turn)))
            known[best] = _at(groups, weights, soft, corners, best)
    step = max(known, key=lambda s: known[s])
    return step, known[step] - value


def _at(
    groups: Sequence[Group],
    weights: Sequence[Mapping[str, Tensor]],
    soft: Sequence[dict[str, Tensor]],
    corners: Sequence[dict[str, Tensor]],
    step: float,
) -> float:
    between = [_between(a, b, step) for a, b in zip(soft, corners, strict=True)]
    return float(_value(groups, weights, between))


__all__ = [
    "CycleConsistentMatching",
    "MergeMany",
    "agreement",
    "all_to_one",
    "is_interlocked",
    "mix",
    "to_first",
]
