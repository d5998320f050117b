"""Weight matching: units with the same weights belong together, no data needed.

Source: Ainsworth et al. 2023, "Git Re-Basin", section 3.2.
"""

from typing import ClassVar

import torch

from lightning_merge.align.matching.matching import matchings, nothing_to_align
from lightning_merge.align.matching.symmetric_maps import (
    MapMatching,
    by_weights,
    check_symmetries,
)
from lightning_merge.align.matching.weight_descent import Descent
from lightning_merge.align.matching.weight_similarity import check_finite_weights
from lightning_merge.symmetry.index_maps import Permutation
from lightning_merge.symmetry.spec import Network, PermutationSpec, Symmetries


@matchings.register(paper="Ainsworth et al. 2023, Git Re-Basin")
class WeightMatching(MapMatching):
    """Maximise the inner product of a's parameters with b's permuted ones.

    Coordinate descent: one group after another, in random order, is solved exactly while
    the others stay, until no group changes. Every step raises the objective, so it ends.
    The descent starts from the better of two points: b as it is, and b aligned once from
    the network's ends inwards, each group by those weights alone whose other axis is an
    input, an output or already aligned. Without it a residual stream that every layer
    reads stays in its old order because of layers that were fitted to that order.
    Biases and the scale and shift of norms count as weights; running statistics move along
    but do not count. Attention heads and the units inside them are solved together.

    With `symmetries="all"` both networks are brought into their canonical form, makers and readers
    of what may be mixed are balanced, and residual streams are rotated (Procrustes), heads
    paired by what is invariant under the maps inside them, these maps being orthogonal then.

    Args:
        seed: Of the order in which groups are visited.
        symmetries: `permutation`, or `all` that the spec's groups have.
    """

    needs_data: ClassVar[bool] = False
    label: ClassVar[str] = "Weight matching"

    def __init__(self, seed: int = 0, symmetries: Symmetries = "permutation") -> None:
        self.seed, self.symmetries = seed, symmetries

    def match(
        self,
        spec: PermutationSpec,
        a: Network,
        b: Network,
        progress: bool = False,
    ) -> Permutation:
        """The permutation of b that brings its parameters closest to those of a.

        With all symmetries, the maps that bring the canonical form of b there: for
        `spec.transform(spec.canonical(b), maps)`.

        Args:
            spec: The spec of their architecture.
            a: The network that stays as it is, or its state dict.
            b: The network whose permutation is sought, or its state dict.
            progress: Whether to show a progress bar.

        Raises:
            AlignmentError: A network does not belong to the spec, or its weights are not finite.
        """
        state_a, state_b = spec.state_of(a), spec.state_of(b)
        if nothing_to_align(spec):
            return spec.identity()
        check_finite_weights(spec, (state_a, state_b))
        check_symmetries(spec, self.symmetries)
        if self.symmetries == "all":
            return by_weights(spec, state_a, state_b, self.seed, progress=progress)
        generator = torch.Generator().manual_seed(self.seed)
        return Descent(spec, state_a, state_b).run(generator, progress)
