"""What aligning gives, and the contract of keeping it beyond this process."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from lightning_merge.checkpoint import StateDict
from lightning_merge.recipe.choice import Choice


@dataclass(frozen=True)
class Alignment:
    """Ingredients in the order of the first one's units, and what was chosen on held-out data.

    The seconds are those that aligning took, whether for this recipe or an earlier one.
    """

    states: Sequence[StateDict]
    seconds: float = 0.0
    choices: tuple[Choice, ...] = ()


Keep = Callable[[tuple[Hashable, ...], Callable[[], Alignment]], Alignment]
"""Gives what is kept under a key, or makes it and keeps it. It changes no result."""
