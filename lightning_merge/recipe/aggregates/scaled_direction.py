"""What recipes share that go from one network along a direction, as far as held-out data say."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from lightning_merge.aggregate import MergedVector
from lightning_merge.aggregate.name_weights import NameWeights
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.progress import tracked
from lightning_merge.recipe.aggregate import Aggregate, Merged
from lightning_merge.recipe.choice import Choice
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.pretrained import check_pretrained, pretrained_state, task_vectors
from lightning_merge.recipe.recalibration import recalibrate_with

Scale = float | Literal["search"]
Shares = list[float] | dict[str, list[float]]

# 0.0 to 1.0, as in "Quality and Diversity Both Matters When Merging Models".
CANDIDATES = [step / 10 for step in range(11)]
"""The scales that are tried if no others are given."""
# The authors of Iso search 0.5, 0.6, ..., and find scales above 1; CART's lie between 1 and 2.5.
WIDER = [step / 10 for step in range(0, 31, 2)]
"""Those of merges whose best scale is often above 1."""


@dataclass(eq=False)
class ScaledDirection(Aggregate):
    """A network plus `scale` times a direction, where the scale may be searched.

    Args:
        scale: The coefficient, or `search`: the one with the best held-out metric.
        candidates: Those among which to search; `tried` of the class if not given: 0.0, 0.1, ...,
            1.0, and 0.0, 0.2, ..., 3.0 for `TSVMerge`, `IsoC`, `IsoCTS` and `CART`.
        metric: What the search compares: accuracy if not given; otherwise the name of a metric
            that the module's validation logs (`val_auroc`).
        mode: Whether more (`max`) or less (`min`) of `metric` is better.

    Raises:
        ConfigError: If there are no candidates.
    """

    tried: ClassVar[list[float]] = CANDIDATES

    scale: Scale = field(default="search", kw_only=True)
    candidates: list[float] | None = field(default=None, kw_only=True)
    metric: str | None = field(default=None, kw_only=True)
    mode: Literal["max", "min"] = field(default="max", kw_only=True)

    def __post_init__(self) -> None:
        """Checks that there is something to search among."""
        if self.candidates is not None and not self.candidates:
            raise ConfigError(f"{type(self).__name__}: there are no candidates; give some numbers")

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
        for scale in tracked(sorted(self.candidates or self.tried), "Scale", context.progress):
            module = context.build(direction.at(origin, scale))
            recalibrate(module, None)
            scores[scale] = held_out.score(module, self.metric)
        # Of equals the smallest; a score that is no number is worse than any.
        sign = 1.0 if self.mode == "max" else -1.0
        worth = {one: -math.inf if math.isnan(x) else sign * x for one, x in scores.items()}
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


@dataclass(eq=False)
class OfTaskVectors(ScaledDirection):
    """The pre-trained network plus `scale` times a merge of the task vectors.

    Args:
        pretrained: The checkpoint that the ingredients were fine-tuned from; where several
            tasks are merged, or the study has a `start`, it is known (None, or `start`).
    """

    from_pretrained = True

    pretrained: str | None = None

    def check(self, context: Context) -> None:
        """Checks that the pre-trained network is known, and that there are data to search on."""
        check_pretrained(self.pretrained, context, type(self).__name__)
        super().check(context)

    def line(self, states: Sequence[StateDict], context: Context) -> tuple[StateDict, MergedVector]:
        """The pre-trained network, and the merged task vectors of everything but shared heads."""
        pretrained = pretrained_state(self.pretrained, context, type(self).__name__)
        return pretrained, self.direction(task_vectors(pretrained, states, context), context)

    @abstractmethod
    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """What the task vectors are merged to."""


@dataclass(eq=False)
class OfWeightedVectors(OfTaskVectors):
    """A merge of the task vectors with a factor for each.

    Args:
        weights: A factor for each task vector; or, by regular expression, factors for the
            tensors in whose names it is found, the first that is (`{"^layer4": [1.0, 0.5]}`).
            All are 1 if not given.
    """

    weights: Shares | None = field(default=None, kw_only=True)

    def check_count(self, count: int) -> None:
        """Checks that there is a weight for each ingredient."""
        NameWeights(self.weights, count, type(self).__name__)

    @property
    def fits_any_count(self) -> bool:
        """Whether no weights were given."""
        return self.weights is None
