"""Several networks, each aligned to one of them on its own."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_merge.align.matching.matching import Matching, Score
from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.spec import PermutationSpec


def all_to_one(
    matching: Matching,
    spec: PermutationSpec,
    models: Sequence[nn.Module],
    batches: Iterable[Any],
    reference: int = 0,
    progress: bool = False,
    *,
    score: Score | None = None,
) -> list[dict[str, Tensor]]:
    """The state dicts of all networks, each aligned to one of them on its own.

    Args:
        matching: How a pair is aligned.
        spec: The spec of their architecture.
        models: The networks; none is changed.
        batches: Iterated once for each other network, so no bare iterator.
        reference: The index of the network that stays as it is.
        progress: Whether to show progress bars.
        score: Scores the state dict of each aligned network, as in `Matching.align`.

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
            aligned.append(spec.apply(model, {}))
        else:
            aligned.append(
                matching.align(
                    spec, models[reference], model, batches, score=score, progress=progress
                )
            )
    return aligned
