"""Activation matching: units that respond alike on the data belong together.

Source: Li et al. 2015, "Convergent learning"; called "Permute" by Jordan et al. 2022
(REPAIR) and by NP Merge.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_merge.align.matching.assignment import assign_blocks, assign_wholes
from lightning_merge.align.matching.head_shared_units import carrier, of_matched_heads
from lightning_merge.align.matching.map_solvers import rotation
from lightning_merge.align.matching.matching import matchings, nothing_to_align
from lightning_merge.align.matching.observe import checked_finite, correlations, observe, with_state
from lightning_merge.align.matching.symmetric_descent import Maps
from lightning_merge.align.matching.symmetric_maps import (
    MapMatching,
    by_weights,
    check_symmetries,
)
from lightning_merge.align.matching.tie_breaking import break_ties
from lightning_merge.align.matching.weight import WeightMatching
from lightning_merge.align.matching.weight_descent import families
from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.index_maps import Permutation, carried_units
from lightning_merge.symmetry.spec import Network, PermutationSpec, Symmetries
from lightning_merge.symmetry.unit_group import Group

# How often register tokens are brought into another order before activations are compared again.
_TOKEN_ORDERS = 3


@matchings.register(paper="Li et al. 2015; NP Merge's Permute", needs="unlabelled training images")
class ActivationMatching(MapMatching):
    """Match units by the correlation of their activations, all groups in one pass of the data.

    Units are observed after normalisation and activation, where the next layer reads them;
    a residual stream adds up the correlations at all its readers. Attention heads are
    matched as wholes by the best assignment of the units inside them. Units that the data do
    not tell apart (those that never vary on them, or vary on one and the same example only)
    are matched by their weights.

    Comparing all pairs of units at every position can cost more than the networks (the hidden
    units of a transformer's MLP: four times the layer that reads them). There only every k-th
    position of each example counts, another k-th from batch to batch.

    With `symmetries="all"` residual streams are rotated by Procrustes on the products of what their
    norms give, over all tokens of both canonical networks, and the rest (heads, units of MLPs) is
    matched by the weights under these rotations. Networks without such streams are matched as
    above, and what may be scaled is brought into a's scale.

    Args:
        cost: What the products at a layer may cost, in multiplications, as a multiple of
            running it once; infinite if every position is to count everywhere. The default
            is chosen for speed; what it costs in quality has not been measured on trained networks.
        symmetries: `permutation`, or `all` that the spec's groups have.

    Raises:
        AlignmentError: `cost` is not above 0.
    """

    label: ClassVar[str] = "Permute"

    def __init__(self, cost: float = 0.25, symmetries: Symmetries = "permutation") -> None:
        if not cost > 0:
            raise AlignmentError(f"cost is {cost}: give a number above 0")
        self.cost, self.symmetries = cost, symmetries

    def match(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        progress: bool = False,
    ) -> Permutation:
        """The permutation of b that makes its units correspond to those of a.

        With all symmetries, the maps that bring the canonical form of b there: for
        `spec.transform(spec.canonical(b), maps)`.

        Args:
            spec: The spec of their architecture.
            model_a: The network that stays as it is.
            model_b: The network whose permutation is sought.
            batches: Read once, and again where register tokens turn out to be in another order
                (unless they are an iterator); tensors, tuples that begin with the input, or dicts
                with `image`, `x` or `input`.
            progress: Whether to show a progress bar.

        Returns:
            A permutation for every group; those that no layer shows (parameters of an attention
            that is written without layers) are matched by their weights when the others are.

        Raises:
            AlignmentError: There are no batches.
        """
        if nothing_to_align(spec):
            return spec.identity()
        check_symmetries(spec, self.symmetries)
        tokens = token_orders(spec, model_a, model_b, self.symmetries)
        order = spec.identity() | tokens
        other = model_b
        for left in reversed(range(_TOKEN_ORDERS + 1)):
            if tokens:
                other = with_state(model_b, spec.apply(model_b.state_dict(), order))
            found = self._match(spec, model_a, other, batches, progress)
            moved = {**spec.identity(), **{name: found[name] for name in tokens}}
            settled = all(torch.equal(moved[g.name], g.identity()) for g in spec.groups)
            # What an iterator gave has been read, and is gone.
            if settled or not left or isinstance(batches, Iterator):
                break
            order = spec.compose(order, moved)
        return spec.compose(order, found)

    def _match(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        progress: bool,
    ) -> Maps:
        if self.symmetries == "all":
            return self._maps(spec, model_a, model_b, batches, progress)
        scores = correlations(spec, model_a, model_b, batches, progress, self.cost)
        return assign_groups(spec, scores, model_a.state_dict(), model_b.state_dict())

    def _maps(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        progress: bool,
    ) -> Maps:
        a, b = model_a.state_dict(), model_b.state_dict()
        streams = [group for group in spec.groups if group.symmetry == "orthogonal"]
        if streams:
            rotations = rotations_of(spec, streams, model_a, model_b, batches, progress)
            return by_weights(spec, a, b, 0, rotations, progress)
        scores = correlations(spec, model_a, model_b, batches, progress, self.cost)
        found = assign_groups(spec, scores, a, b)
        # Activations say which units belong together; what mixes them is left to the weights, as is
        # what was observed nowhere.
        for heads, *inside in families(spec):
            units = inside or [heads]
            if any(g.symmetry == "invertible" or g.name not in scores for g in units):
                for group in (heads, *inside):
                    found.pop(group.name)
        return by_weights(spec, a, b, 0, found, progress)


def token_orders(
    spec: PermutationSpec,
    model_a: Network,
    model_b: Network,
    symmetries: Symmetries = "permutation",
) -> Permutation:
    """The order of tokens that are parameters, by the weights, by group; empty without any.

    Activations say little while they are compared at tokens that are not each other's.
    """
    tokens = [g.name for g in spec.groups if all(m.role == "scales" for m in g.members)]
    if not tokens:
        return {}
    found = WeightMatching(symmetries=symmetries).match(spec, model_a, model_b)
    return {name: found[name] for name in tokens}


def rotations_of(
    spec: PermutationSpec,
    streams: Sequence[Group],
    model_a: nn.Module,
    model_b: nn.Module,
    batches: Iterable[Any],
    progress: bool = False,
) -> Maps:
    """The rotation of each residual stream of canonical b onto that of a; batches are read once."""
    one, other = (with_state(model, spec.canonical(model)) for model in (model_a, model_b))
    found = observe(replace(spec, groups=list(streams)), one, other, batches, progress)
    rotations = {}
    for group in streams:
        if group.name in found:
            products = torch.stack([moments.products() for moments in found[group.name]]).sum(0)
            rotations[group.name] = rotation(group, checked_finite(group.name, products))
    return rotations


def assign_groups(
    spec: PermutationSpec,
    scores: Mapping[str, Tensor],
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    unknown: Collection[str] = (),
) -> Permutation:
    """The permutation of b with the highest scores; units of equal scores go by their weights.

    Scores are `(size, size)`, rows a and columns b; groups that have none are matched by their
    weights in the end, and those of `unknown` are not permuted but mapped.
    """
    result = spec.identity()
    tangled = _in_shared_heads(spec)
    scores = {name: score for name, score in scores.items() if name not in tangled}
    placed: dict[str, Tensor] = {}
    for group in spec.groups:
        inside = [(g, scores[g.name]) for g in group.inside(spec.groups) if g.name in scores]
        if inside:
            found = assign_wholes(inside, None)
            heads = result[group.name] = found.pop("")
            result.update(found)
            for inner, score in inside:
                width = inner.size // inner.blocks
                moved = (heads - torch.arange(len(heads))).repeat_interleave(width) * width
                placed[inner.name] = score[:, (found[inner.name] + moved).to(score.device)]
    # Scores for each head wait for the heads' order, and say nothing where those wait as well.
    waiting = {g.name for g in spec.groups if len(scores.get(g.name, ())) > g.size}
    for group in sorted(spec.groups, key=lambda g: g.name in waiting):
        if group.name not in placed and group.name in scores:
            score = scores[group.name]
            heads_of = carrier(spec.groups, group) if group.name in waiting else None
            if heads_of is not None:
                if heads_of.name in waiting:
                    continue
                score = of_matched_heads(score, result[heads_of.name])
            elif group.blocks > 1:
                # Shuffled channels are carried by the blocks of two layers at once, which are
                # matched by others.
                moved = carried_units(group, spec.groups, result)
                score = score[:, moved.to(score.device)]
            p = result[group.name] = assign_blocks(score, group.blocks)
            placed[group.name] = score[:, p.to(score.device)]
    known = {*placed, *unknown, *(g.parent for g in spec.groups if g.name in placed)}
    rest = [group for group in spec.groups if group.name not in known]
    mapped = [*unknown, *(group.name for group in rest)]
    found = break_ties(spec, result, placed, state_a, state_b, mapped)
    touched = {m.tensor for g in spec.groups if g.name in unknown for m in g.members}
    comparable = [
        replace(group, members=tuple(m for m in group.members if m.tensor not in touched))
        for group in rest
    ]
    part = replace(spec, groups=[group for group in comparable if group.members])
    if not part.groups:
        return found
    return spec.compose(found, WeightMatching().match(part, state_a, spec.apply(state_b, found)))


def _in_shared_heads(spec: PermutationSpec) -> set[str]:
    """Groups of heads within heads, as queries that share keys are, and of the units in them.

    Neither can be compared by what they compute before the other's order is known; weights can.
    """
    within = [group for group in spec.groups if group.blocks > 1]
    pairs = [
        (outer.name, inner.name)
        for outer in within
        for inner in within
        if outer.level > inner.level
        and not {m.place for m in outer.members}.isdisjoint(m.place for m in inner.members)
    ]
    return {name for pair in pairs for name in pair}
