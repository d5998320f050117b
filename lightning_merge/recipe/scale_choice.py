"""How far to go along a direction, chosen on held-out data."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import LightningModule

from lightning_merge.aggregate import MergedVector
from lightning_merge.checkpoint import StateDict
from lightning_merge.progress import tracked
from lightning_merge.recipe.held_out import HeldOut


@dataclass(frozen=True)
class ScaleChoice:
    """Which scaling coefficient was chosen.

    Attributes:
        scale: The coefficient.
        scores: The score of each candidate, under its number.
        score: What was scored.
        examples: How many validation examples there are; their labels were used.
    """

    scale: float
    scores: dict[str, float]
    score: str
    examples: int

    def plain(self) -> dict[str, Any]:
        """The choice as JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"scale {self.scale:g}, chosen by {self.score} on {self.examples:,} validation examples"
        )


def choose_scale(
    direction: MergedVector,
    pretrained: StateDict,
    candidates: Sequence[float],
    build: Callable[[StateDict], LightningModule],
    held_out: HeldOut,
    metric: str | None = None,
    sign: float = 1.0,
) -> ScaleChoice:
    """The coefficient whose network scores best; of equals the smallest.

    The task vectors are not needed any more: each candidate is one pass over the direction.

    Args:
        direction: What the task vectors were merged to.
        pretrained: Where it starts.
        candidates: The coefficients to try.
        build: Makes a recalibrated module of a state dict.
        held_out: What the modules are scored on.
        metric: The validation's metric; accuracy if not given.
        sign: 1 if more of it is better, -1 if less.
    """
    shown = tracked(sorted(candidates), "Scale", held_out.context.progress)
    scores = {
        scale: held_out.score(build(direction.at(pretrained, scale)), metric) for scale in shown
    }
    # A score that is no number is worse than any.
    best = max(scores, key=lambda scale: _worth(sign * scores[scale]))
    named = {f"{scale:g}": score for scale, score in scores.items()}
    return ScaleChoice(best, named, metric or "accuracy", held_out.size)


def _worth(score: float) -> float:
    return -math.inf if math.isnan(score) else score
