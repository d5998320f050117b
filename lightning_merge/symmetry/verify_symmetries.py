"""Numerical proof of symmetries: in float64, with everything randomised, norms' scales included."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_merge.modes import in_float64
from lightning_merge.symmetry.canonical import folded
from lightning_merge.symmetry.index_maps import gather_all, to_sources
from lightning_merge.symmetry.linear_maps import apply_linear, orders, random_map
from lightning_merge.symmetry.replay import Replay, prepare
from lightning_merge.symmetry.symmetries import Symmetric, folds_of
from lightning_merge.symmetry.unit_group import Group
from lightning_merge.symmetry.verify import TOLERANCE
from lightning_merge.trace.deadline import Deadline
from lightning_merge.trace.exported import Exported
from lightning_merge.trace.folds import Folds


def verify_symmetries(
    exported: Exported, found: Symmetric, verified: Sequence[Group], deadline: Deadline
) -> tuple[list[Group], Folds, list[str]]:
    """Keep those symmetries that leave the function unchanged, and the folds that they need.

    The canonical form under random maps of all groups has to give the output of the network as it
    was, to a relative 1e-9. Where it does not, groups are tried one by one, and those that fail,
    with a line each, are left with permutations, which are verified already; groups whose
    permutations are not are left out.
    """
    names = {group.name for group in verified}
    groups = [group for group in found.groups if group.name in names]
    if all(group.symmetry == "permutation" for group in groups):
        return list(verified), Folds(), []
    with in_float64():
        return _kept(_Trial(exported, found.folds, deadline), groups)


def _kept(trial: "_Trial", groups: list[Group]) -> tuple[list[Group], Folds, list[str]]:
    lines: list[str] = []
    if trial.error(groups) <= TOLERANCE:
        return groups, folds_of(trial.folds, groups), lines
    alone = []
    for group in groups:
        error = trial.error([group]) if group.symmetry != "permutation" else 0.0
        if error > TOLERANCE:
            lines.append(
                f"{group.name}: permutations only: an {group.symmetry} map changes the "
                f"output by {error:.1e}"
            )
        alone.append(group if error <= TOLERANCE else _permuted_only(group))
    groups = alone
    if trial.error(groups) > TOLERANCE:
        kept = [_permuted_only(group) for group in groups]
        for at, group in enumerate(groups):
            if group.symmetry == "permutation":
                continue
            kept[at] = group
            if trial.error(kept) > TOLERANCE:
                kept[at] = _permuted_only(group)
                lines.append(
                    f"{group.name}: permutations only: other maps do not combine with the rest"
                )
        groups = kept
    return groups, folds_of(trial.folds, groups), lines


def _permuted_only(group: Group) -> Group:
    return replace(group, symmetry="permutation", keeps_ones=False)


class _Trial:
    """A network in float64 on random numbers, whose tensors are exchanged."""

    def __init__(self, exported: Exported, folds: Folds, deadline: Deadline) -> None:
        self.generator = torch.Generator().manual_seed(20240307)
        self.deadline, self.folds = deadline, folds
        self.replay: Replay = prepare(exported, self.generator, deadline)
        self.state = self.replay.state

    def error(self, groups: Sequence[Group]) -> float:
        """How much the canonical form under random maps of these groups changes the output."""
        self.deadline.check("verifying the symmetries")
        maps = {group.name: random_map(group, self.generator) for group in groups}
        new = transformed(self.state, groups, folds_of(self.folds, list(groups)), maps)
        changed = {n: t for n, t in new.items() if not torch.equal(t, self.state[n])}
        with torch.no_grad():
            return self.replay.error(changed)


def transformed(
    state: Mapping[str, Tensor],
    groups: Sequence[Group],
    folds: Folds,
    maps: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The canonical form of a state dict under maps."""
    result = gather_all(folded(state, groups, folds), to_sources(groups, orders(groups, maps)))
    apply_linear(result, groups, maps)
    return result
