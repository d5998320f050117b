"""What a recipe has chosen on held-out data, as it is printed and stored."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """A choice on held-out data, made where the alternatives are known; or what was drawn.

    Attributes:
        text: What a person reads of it.
        details: What was chosen, among what, by which score, and on how many `examples`; as in
            JSON.
    """

    text: str
    details: dict[str, Any]

    @property
    def looked(self) -> bool:
        """Whether held-out examples were looked at for it."""
        return "examples" in self.details

    def __str__(self) -> str:
        return self.text
