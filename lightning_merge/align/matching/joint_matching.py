"""What matchings of many networks at once share: maps of all into one universe."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_merge.align.matching.matching import Matching, Score
from lightning_merge.align.matching.symmetric_descent import Maps
from lightning_merge.align.matching.symmetric_maps import mapped_onto
from lightning_merge.symmetry.spec import Network, PermutationSpec


class JointMatching(Matching):
    """A matching that takes all networks at once: a subclass defines `match`.

    All are mapped into one universe, so going around any cycle of networks is the identity. What
    is returned is the universe in the first network's coordinates, which stays as it is: the
    mean there is the same function as in the universe, as only invertible maps lie between.
    """

    needs_data: ClassVar[bool] = False
    joint: ClassVar[bool] = True

    @abstractmethod
    def match(
        self, spec: PermutationSpec, networks: Sequence[Network], progress: bool = False
    ) -> list[Maps]:
        """The maps of each network onto the first one.

        Args:
            spec: The spec of their architecture.
            networks: The networks, or their state dicts; none is changed.
            progress: Whether to show progress bars.

        Raises:
            AlignmentError: There are fewer than two networks, one is of another spec, or the
                spec has permutations only, and all symmetries are to be used.
        """

    def align_many(
        self, spec: PermutationSpec, networks: Sequence[Network], progress: bool = False
    ) -> list[dict[str, Tensor]]:
        """The state dicts of all networks in the coordinates of the first; see `match`."""
        found = self.match(spec, networks, progress)
        first, *others = (spec.state_of(network) for network in networks)
        aligned = [spec.apply(first, {})]
        for state, maps in zip(others, found[1:], strict=True):
            if self.symmetries == "all":
                aligned.append(mapped_onto(spec, first, state, maps))
            else:
                aligned.append(spec.apply(state, maps))
        return aligned

    def align(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],  # noqa: ARG002 - weights are enough
        *,
        score: Score | None = None,  # noqa: ARG002 - there is nothing to choose
        progress: bool = False,
    ) -> dict[str, Tensor]:
        """The state dict of b in a's coordinates; `batches` is not read."""
        return self.align_many(spec, [model_a, model_b], progress)[1]
