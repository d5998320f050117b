"""What an alignment leaves, and the contract of keeping it beyond this process."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from lightning_merge.checkpoint import StateDict
from lightning_merge.recipe.choice import Choice


@dataclass(frozen=True)
class Kept:
    """The result of an alignment.

    Attributes:
        states: The state dicts of what was aligned.
        seconds: What aligning took.
        choice: What was chosen on held-out data, if anything.
    """

    states: Sequence[StateDict]
    seconds: float
    choice: Choice | None = None


Keep = Callable[[tuple[Hashable, ...], Callable[[], Kept]], Kept]
"""Gives what is kept under a key, or makes it and keeps it. It changes no result."""
