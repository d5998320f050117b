"""What recipes share that go from one network along a direction, as far as held-out data say."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from lightning_merge.aggregate import LazyTaskVector, MergedVector
from lightning_merge.aggregate.name_weights import NameWeights
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.progress import tracked
from lightning_merge.recipe.aggregate import Aggregate, Merged
from lightning_merge.recipe.choice import Choice
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.pretrained import check_pretrained, pretrained_state, without
from lightning_merge.recipe.recalibration import recalibrate_with

Scale = float | Literal["search"]
Shares = list[float] | dict[str, list[float]]

# 0.0 to 1.0, as in "Quality and Diversity Both Matters When Merging Models".
CANDIDATES = [step / 10 for step in range(11)]
"""The scales that are tried if no others are given."""


class ScaledDirection(Aggregate):
    """A network plus `scale` times a direction, where the scale may be searched.

    Args:
        scale: The coefficient, or `search`.
        candidates: Those among which to search; `CANDIDATES` if not given.
        metric: What the search compares: accuracy if not given.
        mode: Whether more (`max`) or less (`min`) of `metric` is better.
    """

    def __init__(
        self,
        scale: Scale = "search",
        candidates: list[float] | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        self.scale = scale
        self.candidates = CANDIDATES if candidates is None else candidates
        if not self.candidates:
            raise ConfigError(f"{type(self).__name__}: there are no candidates; give some numbers")
        self.metric = metric
        self.sign = 1.0 if mode == "max" else -1.0

    def check(self, context: Context) -> None:
        """Checks that there are data to search on."""
        if self.scale == "search":
            context.held_out()

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the merged weights."""
        origin, direction = self.line(states, context)
        if self.scale != "search":
            return Merged(context.build(direction.at(origin, self.scale)))
        held_out, recalibrate = context.held_out(), recalibrate_with(context, states)
        scores = {}
        for scale in tracked(sorted(self.candidates), "Scale", context.progress):
            module = context.build(direction.at(origin, scale))
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
        return Merged(context.build(direction.at(origin, best)), (choice,), size)

    @abstractmethod
    def line(self, states: Sequence[StateDict], context: Context) -> tuple[StateDict, MergedVector]:
        """Where to start, and the direction."""


class OfTaskVectors(ScaledDirection):
    """The pre-trained network plus `scale` times a merge of the task vectors.

    Args:
        pretrained: The checkpoint that the ingredients were fine-tuned from.
        scale: The coefficient, or `search`.
        candidates: Those among which to search.
        metric: What the search compares.
        mode: Whether more (`max`) or less (`min`) of `metric` is better.
        weights: A factor for each task vector.
    """

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
        super().__init__(scale, candidates, metric, mode)
        self.pretrained = pretrained
        self.weights = weights

    def check(self, context: Context) -> None:
        """Checks that the pre-trained network is known, and that there are data to search on."""
        check_pretrained(self.pretrained, context, type(self).__name__)
        super().check(context)

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

    def line(self, states: Sequence[StateDict], context: Context) -> tuple[StateDict, MergedVector]:
        """The pre-trained network, and the merged task vectors of everything but shared heads."""
        pretrained = pretrained_state(self.pretrained, context, type(self).__name__)
        (start,) = without(context.heads, [pretrained])
        vectors = [LazyTaskVector(state, start) for state in without(context.heads, states)]
        return pretrained, self.direction(vectors, context)

    @abstractmethod
    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """What the task vectors are merged to."""
