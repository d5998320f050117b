"""Ingredients moved so that a training of their mean starts from the recalibrated mean."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate import average
from lightning_merge.checkpoint import StateDict, digest
from lightning_merge.recipe.cache import Cached, identity
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.recalibration import Recalibration


def moved_to_start(
    states: Sequence[StateDict],
    shares: Sequence[float] | None,
    start: Recalibration,
    context: Context,
) -> Cached[list[StateDict]]:
    """Ingredients whose mean is the recalibrated mean of those given.

    All parameters move by what recalibration adds to the mean, so their differences, the
    directions in which alphas go, stay as they were. Everything else (running statistics) is the
    recalibrated mean's.

    Shares are those of the K aligned ingredients in the mean, None for equal ones. The state dicts
    are on the CPU, with the seconds that recalibrating took.
    """
    mean = average(states, shares)

    def compute() -> StateDict:
        module = context.build(mean)
        start.prepare(states, context)(module, shares)
        return {name: value.cpu().clone() for name, value in module.state_dict().items()}

    key = "start", identity(start), tuple(map(digest, states)), identity(shares)
    found = context.recall(key, compute)
    network = context.module
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    moved = [
        {
            name: _moved(value.cpu(), mean[name].cpu(), found.value[name])
            if name in parameters
            else found.value[name]
            for name, value in state.items()
        }
        for state in states
    ]
    return Cached(moved, found.seconds, found.saved)


def _moved(value: Tensor, mean: Tensor, start: Tensor) -> Tensor:
    if torch.equal(mean, start):
        # Masks of infinities too, which have no difference.
        return value
    return value + (start - mean)
