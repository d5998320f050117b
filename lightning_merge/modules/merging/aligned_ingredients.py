"""Ingredients of a MergeModule brought into the first one's basin, alike on every rank."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_merge.align import Matching, PermutationSpec
from lightning_merge.checkpoint import StateDict, tensors_of
from lightning_merge.loaders import example_inputs, statistics_share


def aligned_states(
    trainer: Trainer,
    matching: Matching,
    ingredient: Callable[[int], LightningModule],
    count: int,
) -> list[StateDict]:
    """State dicts of ingredients, the others aligned to the first on the Trainer's data.

    Each rank reads its share of the training batches, and a matching sums up over the ranks:
    every rank gets what a single process would find. Random numbers are left as they were.

    The Trainer is fitting, on every rank; `ingredient` makes the k-th one, in evaluation mode, one
    of the others at a time. The state dicts are on the CPU, the same on every rank.
    """
    batches = statistics_share(trainer)
    first = ingredient(0)
    states = [_on_cpu(first.state_dict())]
    # One rank decides for all: sums on several devices may differ in the last bit, and what
    # is verified of a spec depends on the time that a rank has.
    decided = trainer.strategy.broadcast
    # Loaders draw random numbers; what is trained must not depend on that.
    with isolate_rng():
        inputs = example_inputs(batches, trainer.strategy.root_device)
        spec = decided(PermutationSpec.from_model(first, inputs, symmetries=matching.symmetries))
        if matching.joint:
            networks = [first, *map(ingredient, range(1, count))]
            found = matching.align_many(spec, networks, progress=trainer.is_global_zero)
            return decided([_on_cpu(state) for state in found])
        for k in range(1, count):
            aligned = matching.align(
                spec, first, ingredient(k), batches, progress=trainer.is_global_zero
            )
            states.append(decided(_on_cpu(aligned)))
    return states


def _on_cpu(state: Mapping[str, Any]) -> StateDict:
    # The deciding rank's device is not that of the others.
    return {name: value.cpu() for name, value in tensors_of(state).items()}
