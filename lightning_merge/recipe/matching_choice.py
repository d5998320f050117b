"""What a matching has chosen on examples held out of train: CCA's gamma."""

from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import LightningDataModule


@dataclass(frozen=True)
class MatchingChoice:
    """What was chosen for one ingredient, and by what.

    Attributes:
        ingredient: The ingredient that was aligned to the first one.
        chosen: What was chosen, by name: `{"gamma": 0.1}`.
        scores: The score of each candidate, under its number.
        score: What was scored: `accuracy`, or `-loss` where there is none.
        selected_on: The examples that it was scored on.
        examples: How many of them there are; their labels were used.
    """

    ingredient: str
    chosen: dict[str, float]
    scores: dict[str, float]
    score: str
    selected_on: str
    examples: int

    def plain(self) -> dict[str, Any]:
        """The choice as JSON holds it."""
        fields = asdict(self)
        return {**fields.pop("chosen"), **fields}

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:g}" for name, value in self.chosen.items())
        return f"{values}, chosen on {self.examples:,} examples: {self.selected_on}"


def validation_source(data: LightningDataModule) -> str:
    """Where a data module's validation examples come from, in words."""
    share = getattr(data, "held_out", None)
    if share is None:
        return f"the validation data of {type(data).__name__}"
    return "held out of train" if share > 0 else "the official validation split"
