"""Merges that weigh networks by unlabelled data: Fisher averaging and RegMean."""

from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import LightningModule

from lightning_merge.aggregate import diagonal_fisher, fisher_average, gram_matrices, regmean
from lightning_merge.checkpoint import StateDict
from lightning_merge.loaders import Transferred
from lightning_merge.logit_answers import are_independent
from lightning_merge.modules.capabilities import contiguous_images
from lightning_merge.progress import tracked
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.pretrained import without


@aggregates.register(paper="Matena and Raffel 2022", needs="unlabelled training images")
class Fisher(Aggregate):
    """The average in which each entry counts by its diagonal Fisher information.

    The information is read from the images on which statistics are read (`statistics_examples`),
    where several tasks are merged from each one's own; labels are drawn from the network's
    predictions.

    Args:
        labels_per_example: How many labels to draw for each image; None for the exact
            expectation, which costs a backward pass for each class.
    """

    def __init__(self, labels_per_example: int | None = 1) -> None:
        self.labels_per_example = labels_per_example

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the averaged weights."""
        generator = torch.Generator().manual_seed(context.seed)
        fishers = _of_each(
            lambda module, data: diagonal_fisher(
                module,
                data,
                self.labels_per_example,
                generator,
                independent=are_independent(module),
            ),
            states,
            context,
            "Fisher information",
        )
        return Merged(context.build(fisher_average(states, fishers)))


@aggregates.register(paper="Jin et al. 2023, RegMean", needs="unlabelled training images")
class RegMean(Aggregate):
    """The weights whose outputs, layer by layer, are nearest to those of every network.

    The layers' inputs are read from the same images as for `Fisher`.

    Args:
        scaling: What is left of the off-diagonal entries of the inputs' Gram matrices, in
            [0, 1]; the paper's alpha.
    """

    def __init__(self, scaling: float = 0.9) -> None:
        self.scaling = scaling

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the merged weights."""
        grams = _of_each(gram_matrices, states, context, "Gram matrices")
        return Merged(context.build(regmean(states, grams, self.scaling)))


def _of_each(
    read: Callable[[LightningModule, Transferred], StateDict],
    states: Sequence[StateDict],
    context: Context,
    title: str,
) -> list[StateDict]:
    """What is read from each network on its data, by the names of its tensors, without heads."""
    found = []
    named = list(zip(states, context.names, strict=True))
    for state, name in tracked(named, title, context.progress):
        module, batches = context.own(name, state)
        with contiguous_images(module):
            found.append(read(module.to(context.device), batches))
    return [
        {name: value.cpu() for name, value in one.items()} for one in without(context.heads, found)
    ]
