"""Zipping two networks into one, or up to a layer behind which each goes on by itself.

Source: Stoica et al. 2024, "ZipIt! Merging Models from Different Tasks without Training".
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.align.matching.activation import assign_groups, token_orders
from lightning_merge.align.matching.head_shared_units import lone_groups
from lightning_merge.align.matching.matching import nothing_to_align
from lightning_merge.align.matching.moments import Moments
from lightning_merge.align.matching.observe import observe, summed_correlation, with_state
from lightning_merge.align.zipping.cut import find_cut
from lightning_merge.align.zipping.greedy_zip import Zip, zip_units
from lightning_merge.align.zipping.two_heads import TwoHeads
from lightning_merge.checkpoint import tensors_of
from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.copies import with_copies
from lightning_merge.symmetry.index_maps import Permutation
from lightning_merge.symmetry.linear_maps import map_member
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.unit_group import Group
from lightning_merge.watched_layers import watch_input

# Less than any difference of correlations that data can show.
_PREFERRED = 1e-6
# Enough examples to tell a batch from a single one.
_ENOUGH = 2


@dataclass(frozen=True)
class Zipping:
    """How the units of two networks are brought together.

    Attributes:
        permutation: Of b, for the groups that are not zipped: those in attention heads and in
            grouped convolutions, and units that nothing observes.
        zips: For all others, by name.
    """

    permutation: Permutation
    zips: dict[str, Zip]


def zip_it(
    spec: PermutationSpec,
    model_a: nn.Module,
    model_b: nn.Module,
    batches: Iterable[Any],
    until: str | None = None,
    *,
    alpha: float = 0.3,
    beta: float = 0.125,
    progress: bool = False,
) -> nn.Module:
    """One network of two: units that respond alike are merged, across and within the networks.

    With the merge matrices M and the unmerge matrices U of the groups that lie along a tensor,
    its merged weights are `M_a W_a U_a + M_b W_b U_b`. Norms, scales and biases are `M_a w_a +
    M_b w_b`; what no group moves is averaged, such as the classes of a last layer. Reset BatchNorm
    afterwards.

    Args:
        spec: The spec of their architecture.
        model_a: One network.
        model_b: The other; neither is changed. Behind `until` they may differ in shapes and
            names that no group moves (a number of classes), but then only with `until`.
        batches: Read once; as a rule images of both networks' tasks.
        until: The name of a layer or block, or its end; None for the whole network.
        alpha: As in `zip_units`.
        beta: As in `zip_units`.
        progress: Whether to show a progress bar.

    Returns:
        A network of a's class; with `until` a `TwoHeads`, which gives what both give.

    Raises:
        AlignmentError: There are no batches; alpha or beta is no share; nothing, or several
            things, are called `until`, or the network does not pass through it alone.
    """
    check_shares(alpha, beta)
    with first_inputs(model_a) as examples:
        found = match_units(spec, model_a, model_b, batches, alpha, beta, progress)
    a, b = tensors_of(model_a), tensors_of(model_b)
    if until is None:
        if a.keys() != b.keys():
            raise AlignmentError(
                f"{min(a.keys() ^ b.keys())!r} is in one of the networks only: choose the layer "
                "until which to zip them"
            )
        return _loaded(model_a, zipped_state(spec, a, b, found)).eval()
    if not examples:
        raise AlignmentError(
            f"the network cannot be zipped until {until!r}: it has no units to zip"
        )
    cut = find_cut(spec, model_a, until, examples[0])
    # Behind the cut the networks may differ in shape: nothing of that is merged.
    alike = _where_alike(a, b)
    trunk = _loaded(model_a, zipped_state(spec, a, alike, found))
    zipped = found.zips.get(cut.group)
    if zipped is None:
        order = found.permutation[cut.group]
        heads = torch.eye(len(order)), torch.eye(len(order))[order.argsort()]
    else:
        heads = zipped.unmerge()
    return TwoHeads(trunk, model_a, model_b, cut, heads).eval()


def _loaded(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    network = copy.deepcopy(model)
    # Neither extra state nor what a module leaves out of its files has units.
    network.load_state_dict(state, strict=False)
    return network


def check_shares(alpha: float, beta: float) -> None:
    """Checks the two settings of the matching; an `AlignmentError` if one is no share."""
    if not (0 <= alpha <= 1 and 0 <= beta <= 1):
        raise AlignmentError(f"ZipIt: alpha {alpha} and beta {beta} are shares: choose 0 to 1")


def match_units(
    spec: PermutationSpec,
    model_a: nn.Module,
    model_b: nn.Module,
    batches: Iterable[Any],
    alpha: float = 0.3,
    beta: float = 0.125,
    progress: bool = False,
) -> Zipping:
    """Which units of two networks become one.

    Correlations are those of `ActivationMatching`, where layers read units, added up over a
    residual stream. Among pairs of equal correlation, and for units that never vary in either
    network, it is the pair that the weights prefer.
    """
    if nothing_to_align(spec):
        return Zipping({}, {})
    a, b = tensors_of(model_a), tensors_of(model_b)
    missing = [m.tensor for g in spec.groups for m in g.members if m.tensor not in b]
    if missing:
        raise AlignmentError(
            f"{missing[0]!r} is not in the other network: only what no group moves may differ"
        )
    alike = _where_alike(a, b)
    tokens = token_orders(spec, a, alike)
    if tokens:
        alike = spec.apply(alike, tokens)
        moved = {member.tensor for name in tokens for member in spec.group(name).members}
        model_b = with_state(model_b, {name: alike[name] for name in moved})
    observed = observe(spec, model_a, model_b, batches, progress, own=True)
    across = {name: summed_correlation(name, moments) for name, moments in observed.items()}
    found = assign_groups(spec, across, a, alike)
    permutation = spec.compose(spec.identity() | tokens, found)
    zips = {}
    for group in zippable(spec):
        if group.name in observed:
            order = permutation.pop(group.name)
            pooled = pooled_correlation(observed[group.name], order)
            zips[group.name] = zip_units(pooled, alpha, beta)
    return Zipping(permutation, zips)


def _where_alike(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of b, and those of a where b has none of such a shape."""
    return {
        name: b[name] if name in b and b[name].shape == one.shape else one
        for name, one in a.items()
    }


def zippable(spec: PermutationSpec) -> list[Group]:
    """The groups whose units may be merged within a network, too.

    Not those inside heads or grouped convolutions, where merging units would join the heads.
    """
    made: dict[str, set[tuple[int, ...]]] = {}
    for group in spec.groups:
        for member in group.members:
            if member.role != "reads":
                made.setdefault(member.tensor, set()).add(member.axes)
    return [
        group
        for group in lone_groups(spec.groups)
        if all(m.role == "reads" or len(made[m.tensor]) == 1 for m in group.members)
    ]


def pooled_correlation(moments: Sequence[Moments], order: Tensor) -> Tensor:
    """The mean correlation over a group's sites of both networks' units, `(2n, 2n)`.

    The moments have the covariances inside each network; `order` is the permutation of b, `(n,)`,
    that decides between equal pairs.
    """
    total, constant = torch.zeros(1), torch.ones(1, dtype=torch.bool)
    size = len(order)
    for moment in moments:
        aa, ab, bb = (part.cpu() for part in moment.covariances())
        whole = torch.cat([torch.cat([aa, ab], 1), torch.cat([ab.T, bb], 1)])
        between = moment.correlation().cpu()
        # What is constant is decided with the means in sight, as between the networks.
        varies = torch.cat([between.abs().sum(1) > 0, between.abs().sum(0) > 0])
        deviation = whole.diagonal().clamp_min(1e-30).rsqrt() * varies
        total = total + whole * deviation[:, None] * deviation
        constant = constant & ~varies
    total = total / len(moments)
    pairs = torch.arange(size), order.cpu() + size
    total[pairs] += _PREFERRED
    both = constant[pairs[0]] & constant[pairs[1]]
    total[pairs[0][both], pairs[1][both]] = 1.0
    total.T[pairs] = total[pairs].clone()
    return total


def zipped_state(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    found: Zipping,
) -> dict[str, Tensor]:
    """The weights of the zipped network, in a's types; integers are a's."""
    groups = [group for group in spec.groups if group.name in found.zips]
    ordered = spec.apply(b, found.permutation)
    return with_copies(a, spec.copies, partial(_zipped, groups, found.zips), ordered)


def _zipped(
    groups: Sequence[Group],
    zips: Mapping[str, Zip],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for index, state in enumerate((a, b)):
        parts = {
            name: tensor.to(torch.complex128 if tensor.is_complex() else torch.float64) / 2
            for name, tensor in state.items()
            if tensor.is_floating_point() or tensor.is_complex()
        }
        for group in groups:
            zipped = zips[group.name]
            # What is halved already is merged by weights that add up to 2.
            merge, unmerge = 2 * zipped.merge()[index], zipped.unmerge()[index].T
            for member in group.members:
                if member.tensor not in parts:
                    continue
                own = parts[member.tensor]
                matrix = unmerge if member.role == "reads" else merge
                parts[member.tensor] = map_member(own, member, None, matrix[None])
        for name, part in parts.items():
            total[name] = total[name] + part.to(total[name].device) if index else part
    return {
        name: total[name].to(tensor.dtype) if name in total else tensor.clone()
        for name, tensor in a.items()
    }


@contextmanager
def first_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that gets two of the first inputs that a network is given."""
    kept: list[Tensor] = []

    def keep(given: Tensor) -> None:
        if not kept:
            kept.append(given[:_ENOUGH].detach().clone())

    with watch_input(model, keep):
        yield kept
