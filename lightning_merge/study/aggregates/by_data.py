"""Merges that ask each network about data, but not for labels: Fisher averaging and RegMean."""

from collections.abc import Iterator, Sequence

import torch
from lightning.pytorch import LightningModule

from lightning_merge.aggregate import diagonal_fisher, fisher_average, gram_matrices, regmean
from lightning_merge.checkpoint import StateDict
from lightning_merge.loaders import Transferred
from lightning_merge.modules import ImageClassifier
from lightning_merge.progress import tracked
from lightning_merge.study.aggregates.aggregate import Aggregate
from lightning_merge.study.pool import Pool
from lightning_merge.study.pretrained import without
from lightning_merge.study.task_pool import TaskPool


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

    def __call__(self, states: Sequence[StateDict], pool: Pool) -> LightningModule:
        """A module with the averaged weights."""
        generator = torch.Generator().manual_seed(pool.seed)
        fishers = [
            diagonal_fisher(module, batches, self.labels_per_example, generator)
            for module, batches in _with_data(states, pool, "Fisher information")
        ]
        return pool.build(fisher_average(states, _on_cpu(without(pool.heads, fishers))))


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

    def __call__(self, states: Sequence[StateDict], pool: Pool) -> LightningModule:
        """A module with the merged weights."""
        grams = [
            gram_matrices(module, batches)
            for module, batches in _with_data(states, pool, "Gram matrices")
        ]
        return pool.build(regmean(states, _on_cpu(without(pool.heads, grams)), self.scaling))


def _with_data(
    states: Sequence[StateDict], pool: Pool, title: str
) -> Iterator[tuple[LightningModule, Transferred]]:
    named = list(zip(states, pool.names, strict=True))
    for state, name in tracked(named, title, pool.progress):
        if isinstance(pool, TaskPool):
            task = pool.task(name)
            module, batches = pool.build_for(task, state), pool.statistics_of(task)
        else:
            module, batches = pool.build(state), pool.statistics()
        if isinstance(module, ImageClassifier):
            # Gradients of each example on its own cannot be asked for this order.
            module.memory_format = torch.contiguous_format
        yield module.to(pool.device), batches


def _on_cpu(states: Sequence[StateDict]) -> list[StateDict]:
    return [{name: value.cpu() for name, value in state.items()} for state in states]
