"""What a greedy search has chosen, as it is stored and printed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning_merge.aggregate import Trial


@dataclass(frozen=True)
class GreedyChoice:
    """Which ingredients were kept, and by what.

    Attributes:
        ingredients: Those that were kept, the best one first.
        trace: One line for each ingredient in the order in which they were tried: its name,
            its metric `alone`, the average's metric `with_it` (None if it was dropped before
            its evaluation was complete), whether it was `kept`, and on how many `examples`
            the average was evaluated.
        score: What was compared.
        examples: How many validation examples there are; their labels were used.
    """

    ingredients: list[str]
    trace: list[dict[str, Any]]
    score: str
    examples: int

    @classmethod
    def of(
        cls, trace: Sequence[Trial], names: Sequence[str], score: str, examples: int
    ) -> "GreedyChoice":
        """The choice that a search's trace describes.

        Args:
            trace: What `greedy_soup` gives.
            names: The ingredients' names.
            score: What was compared.
            examples: How many validation examples there are.
        """
        lines = [
            {
                "ingredient": names[trial.candidate],
                "alone": trial.alone,
                "with_it": trial.metric,
                "kept": trial.kept,
                "examples": trial.examples,
            }
            for trial in trace
        ]
        kept = [names[trial.candidate] for trial in trace if trial.kept]
        return cls(kept, lines, score, examples)

    def plain(self) -> dict[str, Any]:
        """The choice as JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{len(self.ingredients)} of {len(self.trace)} ingredients, chosen by {self.score} on "
            f"{self.examples:,} validation examples"
        )
