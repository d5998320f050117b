"""Activation matching: units that respond alike on the data belong together.

Source: Li et al. 2015, "Convergent learning"; called "Permute" by Jordan et al. 2022
(REPAIR) and by NP Merge.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_merge.align.matching.assignment import assign_blocks, assign_wholes
from lightning_merge.align.matching.head_shared_units import carrier, of_matched_heads
from lightning_merge.align.matching.matching import Matching, Score, matchings, nothing_to_align
from lightning_merge.align.matching.observe import correlations
from lightning_merge.align.matching.tie_breaking import break_ties
from lightning_merge.align.spec.index_maps import Permutation
from lightning_merge.align.spec.spec import PermutationSpec


@matchings.register(paper="Li et al. 2015; NP Merge's Permute", needs="unlabelled training images")
class ActivationMatching(Matching):
    """Match units by the correlation of their activations, all groups in one pass of the data.

    Units are observed after normalisation and activation, where the next layer reads them;
    a residual stream adds up the correlations at all its readers. Attention heads are
    matched as wholes by the best assignment of the units inside them. Units that the data do
    not tell apart (those that never vary on them, or vary on one and the same example only)
    are matched by their weights.

    Comparing all pairs of units at every position can cost more than the networks (the hidden
    units of a transformer's MLP: four times the layer that reads them). There only every k-th
    position of each example counts, another k-th from batch to batch.

    Args:
        cost: What the products at a layer may cost, in multiplications, as a multiple of
            running it once; infinite if every position is to count everywhere. The default
            is chosen for speed; what it costs in quality has not been measured on trained networks.
    """

    label: ClassVar[str] = "Permute"

    def __init__(self, cost: float = 0.25) -> None:
        self.cost = cost

    def match(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        progress: bool = False,
    ) -> Permutation:
        """The permutation of b that makes its units correspond to those of a.

        Args:
            spec: The spec of their architecture.
            model_a: The network that stays as it is.
            model_b: The network whose permutation is sought.
            batches: Read once; tensors, tuples that begin with the input, or dicts with
                `image`, `x` or `input`.
            progress: Whether to show a progress bar.

        Returns:
            A permutation for every group; groups that can be observed nowhere keep their order.

        Raises:
            AlignmentError: There are no batches.
        """
        if nothing_to_align(spec):
            return spec.identity()
        scores = correlations(spec, model_a, model_b, batches, progress, self.cost)
        return assign_groups(spec, scores, model_a.state_dict(), model_b.state_dict())

    def align(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        *,
        score: Score | None = None,  # noqa: ARG002 - there is nothing to choose
        progress: bool = False,
    ) -> dict[str, Tensor]:
        """The state dict of b, its units in the order of a's."""
        permutation = self.match(spec, model_a, model_b, batches, progress)
        return spec.apply(model_b.state_dict(), permutation)


def assign_groups(
    spec: PermutationSpec,
    scores: Mapping[str, Tensor],
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    unknown: Collection[str] = (),
) -> Permutation:
    """The permutation of b with the highest scores; units of equal scores go by their weights.

    Args:
        spec: The spec of their architecture.
        scores: For each group that is to be permuted `(size, size)`, rows a and columns b.
        state_a: State dict of a.
        state_b: State dict of b.
        unknown: Names of groups that are not permuted but mapped.
    """
    result = spec.identity()
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
    for group in spec.groups:
        if group.name not in placed and group.name in scores:
            score = scores[group.name]
            heads_of = carrier(spec.groups, group)
            if heads_of is not None:
                score = of_matched_heads(score, result[heads_of.name])
            p = result[group.name] = assign_blocks(score, group.blocks)
            placed[group.name] = score[:, p.to(score.device)]
    return break_ties(spec, result, placed, state_a, state_b, unknown)
