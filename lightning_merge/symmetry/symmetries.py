"""Which groups allow more than permutations, from the linear maps that their operators let pass.

Four symmetry classes: Theus et al. 2025, "Generalized Linear Mode Connectivity for Transformers".
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from lightning_merge.symmetry.interchangeable import Found
from lightning_merge.symmetry.unit_group import Group, Member, Symmetry
from lightning_merge.trace.folds import Folds
from lightning_merge.trace.trace import Trace
from lightning_merge.trace.units import INVERTIBLE, ORTHOGONAL, SCALED, Ids, Zones

_KINDS: tuple[tuple[int, Symmetry], ...] = (
    (INVERTIBLE, "invertible"),
    (ORTHOGONAL, "orthogonal"),
    (SCALED, "scaled"),
)


@dataclass(frozen=True)
class Symmetric:
    """The groups of a network with all their symmetries.

    Attributes:
        groups: As those of a permutation spec, with the same names; a member that a map and
            its inverse transpose both move is divided.
        folds: What `canonical` puts into neighbouring layers.
        kept: A line for each residual stream or head that allows permutations only.
    """

    groups: list[Group]
    folds: Folds
    kept: list[str]


def with_symmetries(trace: Trace, pairs: list[tuple[Group, Found]]) -> Symmetric:
    """Find the largest symmetry of each group, given with the units that it was made of."""
    zones = trace.units.zones()
    means = np.zeros(trace.units.count * 2, dtype=bool)
    for ids in trace.units.means:
        means[zones.of(ids)] = means[zones.dual(ids)] = True
    groups, kept = [], []
    for group, found in pairs:
        if found.wholes or found.name == "heads":
            groups.append(group)
            continue
        made = _symmetric(trace, zones, means, group, found)
        groups.append(made)
        is_normed = bool(means[zones.of(_columns(trace, found)[0])].any())
        if made.symmetry == "permutation" and (is_normed or found.name in ("qk", "v")):
            kept.append(f"{group.name}: permutations only: {_reason(trace, zones, found)}")
    return Symmetric(groups, folds_of(trace.folds, groups), kept)


def folds_of(folds: Folds, groups: list[Group]) -> Folds:
    """Those folds that some orthogonal group needs."""
    tensors = {m.tensor for g in groups if g.symmetry == "orthogonal" for m in g.members}
    return Folds(
        tuple(norm for norm in folds.norms if norm.weight in tensors),
        tuple(scale for scale in folds.scales if scale.scale in tensors),
    )


def _columns(trace: Trace, found: Found) -> tuple[Ids, list[int], list[str]]:
    """The units of all positions, `(size, columns)`; each column's place and role."""
    columns: list[Ids] = []
    owners: list[int] = []
    roles: list[str] = []
    for at, (number, positions) in enumerate(found.places):
        slot = trace.slots[number]
        columns.append(slot.ids.ravel()[positions])
        owners += [at] * positions.shape[1]
        roles += [slot.role] * positions.shape[1]
    return np.concatenate(columns, axis=1), owners, roles


def _symmetric(trace: Trace, zones: Zones, means: np.ndarray, group: Group, found: Found) -> Group:
    ids, owners, roles = _columns(trace, found)
    plus, minus = zones.of(ids), zones.dual(ids)
    allowed = [zones.allowed(column) for column in ids.T]
    for bit, symmetry in _KINDS:
        wanted = ("makes", "scales") if bit == SCALED else ("makes",)
        makers = [k for k, kinds in enumerate(allowed) if kinds & bit and roles[k] in wanted]
        for first in makers:
            signs = []
            for k in range(ids.shape[1]):
                same = bool((plus[:, k] == plus[:, first]).all())
                dual = bool((minus[:, k] == plus[:, first]).all())
                # In a zone that is its own dual, only orthogonal maps are left.
                signs.append(1 if same and (roles[k] != "reads" or not dual) else -1 if dual else 0)
            if 1 in signs and -1 in signs:
                keeps = symmetry == "orthogonal" and bool(means[plus[:, first]].any())
                members = _divided(group.members, owners, signs)
                return replace(group, members=members, symmetry=symmetry, keeps_ones=keeps)
    return group


def _divided(
    members: tuple[Member, ...], owners: list[int], signs: list[int]
) -> tuple[Member, ...]:
    """The members with their variance, one for each that they have."""
    divided = []
    for at, member in enumerate(members):
        mine = [sign for owner, sign in zip(owners, signs, strict=True) if owner == at]
        for sign in dict.fromkeys(mine):
            chosen = torch.tensor([k for k, other in enumerate(mine) if other == sign])
            divided.append(replace(member, index=member.index[:, chosen], variance=sign))
    return tuple(divided)


def _reason(trace: Trace, zones: Zones, found: Found) -> str:
    """What keeps a group from more than permutations."""
    ids, _, roles = _columns(trace, found)
    makers = [k for k, role in enumerate(roles) if role == "makes"] or [0]
    zone = int(zones.of(ids[:1, makers[0]])[0])
    dual = int(zones.dual(ids[:1, makers[0]])[0])
    best = "a linear map of it would change the function"
    for limit in trace.units.limits:
        if limit.kinds & (ORTHOGONAL | INVERTIBLE):
            continue
        if np.isin(zones.of(limit.ids), (zone, dual)).any():
            return limit.reason
    return best
