"""What a recipe has chosen on the way, as it is stored and printed."""

from typing import Any, Protocol


class Choice(Protocol):
    """Something that was chosen by held-out data; its text is what a person reads of it."""

    def plain(self) -> dict[str, Any]:
        """The choice as JSON holds it."""
