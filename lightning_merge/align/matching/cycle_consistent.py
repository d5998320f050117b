"""C2M3: permutations of all networks into one universe, consistent along every cycle.

Source: Crisostomi et al. 2024, "Cycle-Consistent Multi-Model Merging".
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import ClassVar

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from lightning_merge.align.matching.agreement import agreement, states_of, to_first
from lightning_merge.align.matching.assignment import assign_blocks
from lightning_merge.align.matching.joint_matching import JointMatching
from lightning_merge.align.matching.matching import matchings
from lightning_merge.align.matching.soft_permutation import (
    factors_of,
    is_interlocked,
    mix_tensor,
    plan_of,
)
from lightning_merge.align.matching.weight import WeightMatching
from lightning_merge.align.matching.weight_similarity import moved_parameters
from lightning_merge.progress import tracked
from lightning_merge.symmetry.index_maps import Permutation
from lightning_merge.symmetry.spec import Network, PermutationSpec
from lightning_merge.symmetry.unit_group import Group


@matchings.register(paper="Crisostomi et al. 2024, Cycle-Consistent Multi-Model Merging")
class CycleConsistentMatching(JointMatching):
    """C2M3: permutations of all networks into one universe, all groups at once.

    Frank-Wolfe on the agreement of all pairs over doubly stochastic matrices, one for each
    network and group: the gradient's best permutations give the direction for all of them
    together, and the step along it is exact, the agreement being a polynomial of it. In
    the end each matrix is rounded to a permutation. It starts from all networks matched to
    the first by their weights, and returns that where rounding falls below it. Going from
    network to network around any cycle leads back to the identity, by construction.

    A step costs about as much as one sweep of weight matching over all networks.

    Args:
        steps: At most so many steps.
        tolerance: The relative rise of the agreement that ends them.
        seed: Of the weight matching at the start.
    """

    label: ClassVar[str] = "C2M3"

    def __init__(self, steps: int = 50, tolerance: float = 1e-5, seed: int = 0) -> None:
        self.steps, self.tolerance, self.seed = steps, tolerance, seed

    def match(
        self, spec: PermutationSpec, networks: Sequence[Network], progress: bool = False
    ) -> list[Permutation]:
        """The permutation of each network into the order of the first."""
        states = states_of(spec, networks)
        matching = WeightMatching(self.seed)
        start = [spec.identity()]
        others = tracked(states[1:], "Matching each to the first", progress)
        start += [matching.match(spec, states[0], state) for state in others]
        placed = [spec.apply(s, p) for s, p in zip(states, start, strict=True)]
        changes = self._ascend(spec, placed, progress)
        moved = [spec.apply(s, p) for s, p in zip(placed, changes, strict=True)]
        if agreement(spec, moved) > agreement(spec, placed):
            start = [spec.compose(p, c) for p, c in zip(start, changes, strict=True)]
        return to_first(spec, start)

    def _ascend(
        self, spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]], progress: bool
    ) -> list[Permutation]:
        """The permutations to which Frank-Wolfe leads from where the networks are."""
        names = moved_parameters(spec)
        weights = [{name: state[name].detach() for name in names} for state in states]
        groups = [group for group in spec.groups if not is_interlocked(group)]
        identity = {g.name: torch.eye(g.size, dtype=torch.float64) for g in groups}
        soft = [dict(identity) for _ in states]
        for _ in tracked(range(self.steps), "Matching all at once", progress):
            value, slopes = _slopes(groups, weights, soft)
            corners = [_corner(groups, slope) for slope in slopes]
            step, rise = _best_step(groups, weights, soft, corners)
            if rise <= self.tolerance * abs(value):
                break
            soft = [_between(a, b, step) for a, b in zip(soft, corners, strict=True)]
        return [_rounded(groups, matrices) for matrices in soft]


def _rounded(groups: Sequence[Group], matrices: Mapping[str, Tensor]) -> Permutation:
    """The permutations whose matrices have the largest inner product with these."""
    return {g.name: assign_blocks(matrices[g.name], g.blocks) for g in groups}


def _corner(groups: Sequence[Group], slope: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The permutation matrices in the direction of a slope; row `i` says where `i` is from."""
    return {
        name: torch.eye(len(permutation), dtype=torch.float64)[permutation]
        for name, permutation in _rounded(groups, slope).items()
    }


def _between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], step: float) -> dict[str, Tensor]:
    return {name: torch.lerp(a[name], b[name], step) for name in a}


def _value(tensors: Sequence[Tensor]) -> Tensor:
    """The inner products of all pairs of the networks' tensors, summed."""
    together = torch.stack(list(tensors)).sum(0).square().sum()
    return (together - torch.stack([t.square().sum() for t in tensors]).sum()) / 2


def _slopes(
    groups: Sequence[Group],
    weights: Sequence[Mapping[str, Tensor]],
    soft: Sequence[Mapping[str, Tensor]],
) -> tuple[float, list[dict[str, Tensor]]]:
    """The agreement, and its derivative by every entry of every matrix."""
    plan = plan_of(groups)
    slopes = [{name: torch.zeros_like(m) for name, m in matrices.items()} for matrices in soft]
    total = 0.0
    with torch.inference_mode(False), torch.enable_grad():
        factors = [factors_of(matrices) for matrices in soft]
        # One tensor at a time, so that only its intermediate results take memory.
        for name in weights[0]:
            touching = dict.fromkeys(group for group, *_ in plan.get(name, []))
            leaves = [{g: f[g].leaf() for g in touching} for f in factors]
            value = _value(
                [
                    mix_tensor(plan.get(name, []), state[name].to(torch.float64, copy=True), own)
                    for state, own in zip(weights, leaves, strict=True)
                ]
            )
            total += value.item()
            flat = [own[g].matrix for own in leaves for g in touching]
            found = iter(torch.autograd.grad(value, flat) if flat else ())
            for slope in slopes:
                for g in touching:
                    slope[g] += next(found)
    return total, slopes


def _best_step(
    groups: Sequence[Group],
    weights: Sequence[Mapping[str, Tensor]],
    soft: Sequence[Mapping[str, Tensor]],
    corners: Sequence[Mapping[str, Tensor]],
) -> tuple[float, float]:
    """The step between 0 and 1 that raises the agreement most, and by how much.

    A tensor on which `d` groups act is a polynomial of degree `d` of the step: its values at
    `d + 1` steps, and their inner products, give the agreement as a polynomial exactly.
    """
    plan = plan_of(groups)
    at = lru_cache(None)(
        lambda step: [factors_of(_between(a, b, step)) for a, b in zip(soft, corners, strict=True)]
    )
    products: dict[int, Tensor] = {}
    with torch.no_grad():
        for name in weights[0]:
            acting = plan.get(name, [])
            mixed = torch.stack(
                [
                    torch.stack(
                        [
                            mix_tensor(acting, state[name].double(), own).reshape(-1)
                            for state, own in zip(weights, at(step), strict=True)
                        ]
                    )
                    for step in _steps(len(acting))
                ]
            )
            together, flat = mixed.sum(1), mixed.flatten(1)
            both = (together @ together.T - flat @ flat.T).cpu() / 2
            products[len(acting)] = products.get(len(acting), torch.zeros(())) + both
    curve = Polynomial([0.0])
    for degree, both in products.items():
        basis = [_lagrange(_steps(degree), index) for index in range(degree + 1)]
        for (i, p), (j, q) in product(enumerate(basis), repeat=2):
            curve = curve + float(both[i, j]) * p * q
    turns = [float(r.real) for r in curve.deriv().roots() if abs(r.imag) < 1e-9]
    steps = [0.0, 1.0, *(turn for turn in turns if 0 < turn < 1)]
    best = max(steps, key=lambda step: float(curve(step)))
    return best, float(curve(best) - curve(0.0))


def _steps(degree: int) -> list[float]:
    """Where a polynomial of this degree is evaluated."""
    return [float(step) for step in np.linspace(0, 1, degree + 1)]


def _lagrange(steps: Sequence[float], index: int) -> Polynomial:
    """The polynomial that is 1 at one of the steps and 0 at the others."""
    result = Polynomial([1.0])
    for other, step in enumerate(steps):
        if other != index:
            result = result * Polynomial([-step, 1.0]) / (steps[index] - step)
    return result
