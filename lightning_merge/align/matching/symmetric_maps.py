"""What matchings by maps share: `align`, and with all symmetries the balanced canonical forms."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.align.matching.map_solvers import balance
from lightning_merge.align.matching.matching import Matching, Score
from lightning_merge.align.matching.symmetric_descent import Maps, SymmetricDescent
from lightning_merge.align.matching.weight_similarity import check_finite_weights
from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.canonical import unfolded
from lightning_merge.symmetry.copies import with_copies
from lightning_merge.symmetry.linear_maps import compose_maps, inverse_maps
from lightning_merge.symmetry.spec import PermutationSpec, Symmetries

State = Mapping[str, Tensor]
Find = Callable[[dict[str, Tensor], dict[str, Tensor]], Maps]


class MapMatching(Matching):
    """A matching that finds a map of b's units for each group: a subclass defines `match`."""

    @abstractmethod
    def match(self, *args: Any, **named: Any) -> Maps:
        """The maps, from a spec, two networks, the batches if `needs_data`, and `progress`."""

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
        """The state dict of b, its units in the order, with all symmetries the coordinates, of a's.

        `batches` is not read where `needs_data` is False.
        """
        data = (batches,) if self.needs_data else ()
        maps = self.match(spec, model_a, model_b, *data, progress=progress)
        if self.symmetries == "all":
            return mapped_onto(spec, spec.state_of(model_a), spec.state_of(model_b), maps)
        return spec.apply(model_b, maps)


def check_symmetries(spec: PermutationSpec, symmetries: Symmetries) -> None:
    """Checks that a spec has what a matching is to use; an `AlignmentError` if not."""
    if symmetries == "all" and spec.symmetries != "all":
        raise AlignmentError(
            "the spec was derived for permutations only: make it by "
            "PermutationSpec.from_model(..., symmetries='all')"
        )


def maps_between(spec: PermutationSpec, a: State, b: State, find: Find) -> Maps:
    """The maps of canonical b onto canonical a, for a spec with all symmetries.

    `find` finds maps between the balanced canonical forms, permutations and orthogonal ones.
    """
    check_finite_weights(spec, (a, b))
    one, other = (spec.canonical(state) for state in (a, b))
    gauges = [balance(spec.groups, state) for state in (one, other)]
    one, other = (
        spec.transform(state, gauge) for state, gauge in zip((one, other), gauges, strict=True)
    )
    found = compose_maps(spec.groups, gauges[1], find(one, other))
    return compose_maps(spec.groups, found, inverse_maps(spec.groups, gauges[0]))


def by_weights(
    spec: PermutationSpec,
    a: State,
    b: State,
    seed: int,
    given: Maps | None = None,
    progress: bool = False,
) -> Maps:
    """The maps of canonical b onto canonical a by their weights; some may be given."""

    def find(one: dict[str, Tensor], other: dict[str, Tensor]) -> Maps:
        generator = torch.Generator().manual_seed(seed)
        return SymmetricDescent(spec, one, other).run(generator, given, progress)

    return maps_between(spec, a, b, find)


def mapped_onto(spec: PermutationSpec, a: State, b: State, maps: Maps) -> dict[str, Tensor]:
    """The state of b in a's coordinates: under its norms' scales, shifts and means."""
    state = spec.transform(spec.canonical(b), maps)
    return with_copies(
        state,
        spec.copies,
        lambda own, like: unfolded(own, like, spec.groups, spec.folds),
        a,
    )
