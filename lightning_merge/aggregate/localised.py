"""TALL masks: where in a sum of task vectors each task's own knowledge is; Consensus merging.

Wang et al. 2024, "Localizing Task Information for Improved Model Merging and Compression" (arXiv
2405.07813).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.inputs import State, checked, opened
from lightning_merge.aggregate.vector_arithmetic import (
    MergedVector,
    check_start,
    check_vectors,
    summed,
)
from lightning_merge.errors import ConfigError
from lightning_merge.state_dicts import StateDict, table_of
from lightning_merge.tensor_names import is_running_statistic


def tall_masks(
    pretrained: State, vectors: Sequence[State], threshold: float = 0.4
) -> list[dict[str, Tensor]]:
    """A mask for each task, under which the sum of all task vectors is nearly its own.

    With `tau` the sum, task t's mask keeps an entry where `|tau_t| >= threshold * |tau - tau_t|`
    and the task moved it: `pretrained + mask_t * tau` is then nearly the task's network, at one bit
    for each parameter. It is exactly that, whatever the threshold, where no two tasks move the same
    entry.

    Args:
        pretrained: The state dict that the vectors start from, or the path of its file.
        vectors: T task vectors, or paths of their files.
        threshold: From 0 on; the larger, the fewer entries are kept.

    Returns:
        For each task, its masks by name, Boolean, in the tensors' shapes; parameters alone, no
        running statistics and no integers.

    Raises:
        ConfigError: If there is no vector, or the threshold is negative.
        ArchitectureMismatchError: If names, shapes or kinds of numbers differ.
        NonFiniteError: If an entry is NaN or infinite.

    Example:
        >>> import torch
        >>> zero = {"w": torch.zeros(3)}
        >>> vectors = [{"w": torch.tensor([2.0, 0.1, 0])}, {"w": torch.tensor([0, 1.0, 5.0])}]
        >>> one, other = tall_masks(zero, vectors)
        >>> one["w"].tolist(), other["w"].tolist()
        ([True, False, False], [False, True, True])
    """
    found = check_vectors(vectors)
    check_start(table_of(found[0]), table_of(opened(pretrained)))
    masks: list[dict[str, Tensor]] = [{} for _ in found]
    for name, _, own in _masks(found, threshold):
        for mask, one in zip(masks, own, strict=True):
            mask[name] = one
    return masks


def tall_mask(own: Tensor, total: Tensor, threshold: float) -> Tensor:
    """Which entries of the sum of all task vectors are nearly those of one of them."""
    # An entry that a task did not move has no part in the sum, at threshold 0 either.
    return (own.abs() >= threshold * (total - own).abs()) & (own != 0)


def check_threshold(threshold: float) -> None:
    """Checks the threshold of TALL masks; a `ConfigError` if it is negative."""
    if not threshold >= 0:
        raise ConfigError(f"TALL masks: threshold {threshold} is negative; choose 0 or more")


def consensus(
    pretrained: State,
    vectors: Sequence[State],
    scale: float,
    threshold: float = 0.4,
    agree: int = 2,
) -> StateDict:
    """`pretrained + scale * tau`, of which only what several tasks need is kept.

    Args:
        pretrained: The state dict that the vectors start from, or the path of its file.
        vectors: T task vectors, or paths of their files.
        scale: The coefficient, as for `task_arithmetic`.
        threshold: As for `tall_masks`.
        agree: As for `consensus_vector`.

    Returns:
        A new state dict. Counters are the pre-trained network's, statistics lie between its
        own and the fine-tuned networks' average.

    Raises:
        MergeError: As for `consensus_vector`, and if the result is beyond its type's range.
    """
    return consensus_vector(vectors, threshold, agree).at(pretrained, scale)


def consensus_vector(
    vectors: Sequence[State], threshold: float = 0.4, agree: int = 2
) -> MergedVector:
    """The sum of task vectors in those entries that at least `agree` TALL masks keep.

    What one task alone needs, or none, is left at the pre-trained value. Running statistics are
    averaged.

    Args:
        vectors: T task vectors with the same names and shapes, or paths of their files. One
            tensor at a time is taken from each.
        threshold: As for `tall_masks`.
        agree: How many masks have to keep an entry; with 0 it is task arithmetic.

    Returns:
        The direction; its `at` gives the network for a scale. The order of the tasks changes
        nothing but roundings.

    Raises:
        ConfigError: If there is no vector, a number is negative, or more masks have to keep
            an entry than there are.
        ArchitectureMismatchError: If names, shapes or kinds of numbers differ.
        NonFiniteError: If an entry is NaN or infinite.
    """
    if not 0 <= agree <= max(len(vectors), 2):
        raise ConfigError(
            f"Consensus: {agree} of {len(vectors)} masks cannot agree; choose 0 to {len(vectors)}"
        )
    found = check_vectors(vectors)
    merged: StateDict = {}
    for name, total, own in _masks(found, threshold):
        kept = torch.stack(own).sum(dim=0) >= agree
        merged[name] = checked(name, (total[0] * kept).to(total[1]))
    for name in found[0]:
        total_of_others = None if name in merged else summed(found, name)
        if total_of_others is not None:
            merged[name] = checked(name, total_of_others[0].to(total_of_others[1]))
    return MergedVector({name: merged[name] for name in found[0] if name in merged}, len(found))


def _masks(
    vectors: Sequence[Mapping[str, Tensor]], threshold: float
) -> Iterator[tuple[str, tuple[Tensor, torch.dtype], list[Tensor]]]:
    """Name, sum (and the type to keep it in) and masks of each parameter."""
    check_threshold(threshold)
    for name in vectors[0]:
        total = None if is_running_statistic(name) else summed(vectors, name)
        if total is None:
            continue
        own = (vector[name].detach().to(total[0]) for vector in vectors)
        yield name, total, [tall_mask(one, total[0], threshold) for one in own]
