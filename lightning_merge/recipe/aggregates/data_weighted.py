"""Merges that ask each network about data, but not for labels: Fisher averaging and RegMean."""

from collections.abc import Iterator, Sequence

import torch
from lightning.pytorch import LightningModule

from lightning_merge.aggregate import diagonal_fisher, fisher_average, gram_matrices, regmean
from lightning_merge.checkpoint import StateDict
from lightning_merge.loaders import Transferred
from lightning_merge.modules.capabilities import contiguous_images
from lightning_merge.progress import tracked
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.pretrained import without


@aggregates.register(paper="Matena and Raffel 2022", needs="unlabelled training images")
class Fisher(Aggregate):
    """The average in which each entry counts by its diagonal Fisher information.

    Matena and Raffel 2022, "Merging Models with Fisher-Weighted Averaging". The information is
    read from the images on which statistics are read (`statistics_examples`), where several
    tasks are merged from each one's own; labels are drawn from the network's predictions.

    Args:
        labels_per_example: How many labels to draw for each image; None for the exact
            expectation, which costs a backward pass for each class.
    """

    def __init__(self, labels_per_example: int | None = 1) -> None:
        self.labels_per_example = labels_per_example

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the averaged weights."""
        generator = torch.Generator().manual_seed(context.seed)
        fishers = [
            diagonal_fisher(module, batches, self.labels_per_example, generator)
            for module, batches in _with_data(states, context, "Fisher information")
        ]
        merged = fisher_average(states, _on_cpu(without(context.heads, fishers)))
        return Merged(context.build(merged))


@aggregates.register(paper="Jin et al. 2023, RegMean", needs="unlabelled training images")
class RegMean(Aggregate):
    """The weights whose outputs, layer by layer, are nearest to those of every network.

    Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models". The
    layers' inputs are read from the same images as for `Fisher`.

    Args:
        scaling: What is left of the off-diagonal entries of the inputs' Gram matrices, in
            [0, 1]; the paper's alpha.
    """

    def __init__(self, scaling: float = 0.9) -> None:
        self.scaling = scaling

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the merged weights."""
        grams = [
            gram_matrices(module, batches)
            for module, batches in _with_data(states, context, "Gram matrices")
        ]
        merged = regmean(states, _on_cpu(without(context.heads, grams)), self.scaling)
        return Merged(context.build(merged))


def _with_data(
    states: Sequence[StateDict], context: Context, title: str
) -> Iterator[tuple[LightningModule, Transferred]]:
    named = list(zip(states, context.names, strict=True))
    for state, name in tracked(named, title, context.progress):
        module, batches = context.own(name, state)
        with contiguous_images(module):
            yield module.to(context.device), batches


def _on_cpu(states: Sequence[StateDict]) -> list[StateDict]:
    return [{name: value.cpu() for name, value in state.items()} for state in states]
