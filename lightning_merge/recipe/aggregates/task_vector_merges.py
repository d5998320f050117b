"""Merges of task vectors: what fine-tuning changed, added to the pre-trained network."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_merge.aggregate import LazyTaskVector, MergedVector, dare, sum_vectors, ties_vector
from lightning_merge.aggregate.name_weights import NameWeights
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.progress import tracked
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.choice import Choice
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.pretrained import check_pretrained, pretrained_state, without
from lightning_merge.recipe.recalibration import recalibrate_with

Scale = float | Literal["search"]
Shares = list[float] | dict[str, list[float]]

# 0.0 to 1.0, as in "Quality and Diversity Both Matters When Merging Models".
_CANDIDATES = [step / 10 for step in range(11)]
# 0.8 to 2.5, as TIES' authors search (README of their code).
_AUTHORS = [step / 10 for step in range(8, 26)]

_NEEDS = "the pre-trained network; held-out labels where the scale is searched"


class _OfTaskVectors(Aggregate):
    from_pretrained = True

    def __init__(
        self,
        pretrained: str | None = None,
        scale: Scale = "search",
        candidates: list[float] | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
        weights: Shares | None = None,
    ) -> None:
        self.pretrained = pretrained
        self.scale = scale
        self.weights = weights
        self.candidates = _CANDIDATES if candidates is None else candidates
        if not self.candidates:
            raise ConfigError(f"{type(self).__name__}: there are no candidates; give some numbers")
        self.metric = metric
        self.sign = 1.0 if mode == "max" else -1.0

    def check(self, context: Context) -> None:
        """Checks that the pre-trained network is known, and that there are data to search on."""
        check_pretrained(self.pretrained, context, type(self).__name__)
        if self.scale == "search":
            context.held_out()

    def check_count(self, count: int) -> None:
        """Checks that there is a weight for each ingredient.

        Raises:
            ConfigError: If not.
        """
        NameWeights(self.weights, count, type(self).__name__)

    @property
    def fits_any_count(self) -> bool:
        """Whether no weights were given."""
        return self.weights is None

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the merged weights."""
        pretrained = pretrained_state(self.pretrained, context, type(self).__name__)
        (start,) = without(context.heads, [pretrained])
        vectors = [LazyTaskVector(state, start) for state in without(context.heads, states)]
        direction = self.direction(vectors, context)
        if self.scale != "search":
            return Merged(context.build(direction.at(pretrained, self.scale)))
        held_out, recalibrate = context.held_out(), recalibrate_with(context, states)
        scores = {}
        for scale in tracked(sorted(self.candidates), "Scale", context.progress):
            module = context.build(direction.at(pretrained, scale))
            recalibrate(module, None)
            scores[scale] = held_out.score(module, self.metric)
        # Of equals the smallest; a score that is no number is worse than any.
        worth = {one: -math.inf if math.isnan(x) else self.sign * x for one, x in scores.items()}
        best = max(worth, key=worth.__getitem__)
        score, size = self.metric or "accuracy", held_out.size
        choice = Choice(
            f"scale {best:g}, chosen by {score} on {size:,} validation examples",
            {
                "scale": best,
                "scores": {f"{one:g}": value for one, value in scores.items()},
                "score": score,
                "examples": size,
            },
        )
        return Merged(context.build(direction.at(pretrained, best)), (choice,), size)

    @abstractmethod
    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """What the task vectors are merged to."""


@aggregates.register(paper="Ilharco et al. 2023, Editing Models with Task Arithmetic", needs=_NEEDS)
class TaskArithmetic(_OfTaskVectors):
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
class TIES(_OfTaskVectors):
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
class DARE(_OfTaskVectors):
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
