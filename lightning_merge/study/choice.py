"""What a merge has chosen on held-out data: ingredients, a scale, an alignment's ridge."""

from typing import Any, Protocol


class Choice(Protocol):
    """Something that was chosen by validation data, as it is stored and told."""

    def plain(self) -> dict[str, Any]:
        """The choice as JSON holds it."""

    def __str__(self) -> str:
        """The choice in words, with the number of examples that it stands on."""
