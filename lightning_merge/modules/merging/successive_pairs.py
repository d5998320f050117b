"""More than two ingredients, merged two at a time.

Non-Uniform Parameter-Wise Model Merging (2024), Sec. III-C: pairs chosen at random are merged,
then the results in the same way, until one is left.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_merge.checkpoint import StateDict, state_of, tensors_of
from lightning_merge.errors import CheckpointError
from lightning_merge.modules.merging.merge_module import MergeModule

T = TypeVar("T")


def successive_pairs(ingredients: Sequence[T], merge_pair: Callable[[T, T], T], seed: int = 0) -> T:
    """Merges pairs at random, round after round; who is left over waits for the next round.

    Args:
        ingredients: Two or more.
        merge_pair: Makes one of two; aligning the second to the first is its business.
        seed: Of the pairs.

    Returns:
        What the last merge made.

    Raises:
        CheckpointError: If there are fewer than two ingredients.
    """
    if len(ingredients) < 2:
        raise CheckpointError("merging needs at least two checkpoints; add another")
    order, left = random.Random(seed), list(ingredients)
    while len(left) > 1:
        order.shuffle(left)
        merged = [merge_pair(a, b) for a, b in zip(left[::2], left[1::2], strict=False)]
        left = merged + left[2 * len(merged) :]
    return left[0]


def merge_in_pairs(
    make_module: Callable[[], LightningModule],
    checkpoints: Sequence[str | Path | Mapping[str, Tensor] | nn.Module],
    fit: Callable[[MergeModule], object],
    seed: int = 0,
    **settings: Any,
) -> StateDict:
    """NP Merge of more than two ingredients, each pair aligned and learned anew.

    Args:
        make_module: Makes the LightningModule, once for each pair.
        checkpoints: The ingredients: paths, networks, or state dicts with the module's names.
        fit: Trains the alphas of a pair, with a Trainer of its own, and recalibrates.
        seed: Of the pairs.
        **settings: Arguments of `MergeModule`, such as `matching`.

    Returns:
        The state dict of the last merge, with the module's names.

    Raises:
        MergeError: As `MergeModule` does.
    """

    def merge_pair(first: StateDict, second: StateDict) -> StateDict:
        module = MergeModule(make_module(), [first, second], **settings)
        fit(module)
        made = tensors_of(module)
        if not module.strict_loading:
            # What the files leave out is not in the next pair's other one.
            made = {name: value for name, value in made.items() if name in first}
        return {name: value.detach().cpu().clone() for name, value in made.items()}

    states = [tensors_of(state_of(one)) for one in checkpoints]
    return successive_pairs(states, merge_pair, seed)
