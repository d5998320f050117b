"""Merges of task vectors: what fine-tuning changed, added to the pre-trained network."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_merge.aggregate import MergedVector, dare, sum_vectors, ties_vector
from lightning_merge.recipe.aggregate import aggregates
from lightning_merge.recipe.aggregates.scaled_direction import OfTaskVectors, Scale, Shares
from lightning_merge.recipe.context import Context

# 0.8 to 2.5, as TIES' authors search (README of their code).
_AUTHORS = [step / 10 for step in range(8, 26)]

_NEEDS = "the pre-trained network; held-out labels where the scale is searched"


@aggregates.register(paper="Ilharco et al. 2023, Editing Models with Task Arithmetic", needs=_NEEDS)
class TaskArithmetic(OfTaskVectors):
    """The pre-trained network plus `scale` times the sum of the task vectors.

    Ilharco et al. 2023, "Editing Models with Task Arithmetic".

    Args:
        pretrained: The checkpoint that the ingredients were fine-tuned from; where several
            tasks are merged, or the study has a `start`, it is known (None, or `start`).
        scale: The coefficient of the sum, or `search`: the one with the best held-out metric.
        candidates: Those among which to search; 0.0, 0.1, ..., 1.0 if not given.
        metric: What the search compares: accuracy if not given; otherwise the name of a metric
            that the module's validation logs (`val_auroc`).
        mode: Whether more (`max`) or less (`min`) of `metric` is better.
        weights: A factor for each task vector; or, by regular expression, factors for the
            tensors in whose names it is found, the first that is (`{"^layer4": [1.0, 0.5]}`).
            All are 1 if not given.
    """

    label = "TaskArithmetic"

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """The sum."""
        del context
        return sum_vectors(vectors, self.weights)


@aggregates.register(paper="Yadav et al. 2023, TIES-Merging", needs=_NEEDS)
class TIES(OfTaskVectors):
    """The pre-trained network plus `scale` times the TIES merge of the task vectors.

    Yadav et al. 2023, "TIES-Merging: Resolving Interference When Merging Models".

    Args:
        pretrained: As for `TaskArithmetic`.
        density: The share of each vector that is kept, in (0, 1].
        scale: As for `TaskArithmetic`; 1 is the paper's own choice without held-out data.
        candidates: As for `TaskArithmetic`; `authors` for those of the authors' code, 0.8, 0.9,
            ..., 2.5.
        metric: As for `TaskArithmetic`.
        mode: As for `TaskArithmetic`.
        merge: `mean` of the entries that agree in sign, as in the paper, or their `sum` (the
            authors' `dis-sum`).
        weights: As for `TaskArithmetic`, from 0 on: factors of the trimmed vectors, before signs
            are elected.
    """

    label = "TIES"

    def __init__(
        self,
        pretrained: str | None = None,
        density: float = 0.2,
        scale: Scale = "search",
        candidates: list[float] | Literal["authors"] | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
        merge: Literal["mean", "sum"] = "mean",
        weights: Shares | None = None,
    ) -> None:
        tried = _AUTHORS if candidates == "authors" else candidates
        super().__init__(pretrained, scale, tried, metric, mode, weights)
        self.density = density
        self.merge = merge

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """The disjoint mean, or sum, of the trimmed vectors."""
        del context
        return ties_vector(vectors, self.density, self.merge, self.weights)


@aggregates.register(paper="Yu et al. 2024, DARE", needs=_NEEDS)
class DARE(OfTaskVectors):
    """Task vectors of which most entries are dropped at random, then merged.

    Yu et al. 2024, "Language Models are Super Mario". The context's seed determines which entries.

    Args:
        pretrained: As for `TaskArithmetic`.
        drop: The probability with which an entry is dropped, in [0, 1).
        density: The share that TIES then keeps of each vector; None for their plain sum (task
            arithmetic). After dropping, a share above `1 - drop` trims nothing.
        scale: As for `TaskArithmetic`.
        candidates: As for `TaskArithmetic`.
        metric: As for `TaskArithmetic`.
        mode: As for `TaskArithmetic`.
        merge: As for `TIES`, where there is a `density`.
        weights: As for `TaskArithmetic`.
    """

    label = "DARE"

    def __init__(
        self,
        pretrained: str | None = None,
        drop: float = 0.9,
        density: float | None = None,
        scale: Scale = "search",
        candidates: list[float] | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
        merge: Literal["mean", "sum"] = "mean",
        weights: Shares | None = None,
    ) -> None:
        super().__init__(pretrained, scale, candidates, metric, mode, weights)
        self.drop = drop
        self.density = density
        self.merge = merge

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """The sum, or the TIES merge, of what was not dropped."""
        kept = dare(vectors, self.drop, torch.Generator().manual_seed(context.seed))
        if self.density is None:
            return sum_vectors(kept, self.weights)
        return ties_vector(kept, self.density, self.merge, self.weights)
