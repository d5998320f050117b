"""What a recipe's plain configuration says of its parts."""

from collections.abc import Mapping
from typing import Any


def kind_of(part: Any) -> str:
    """The class of a part, without its path; a part is a name, or `class_path` and `init_args`."""
    name = part.get("class_path", "") if isinstance(part, Mapping) else part
    return str(name).rpartition(".")[2]


def arguments_of(part: Any) -> Mapping[str, Any]:
    """The arguments of a part."""
    return (part.get("init_args") or {}) if isinstance(part, Mapping) else {}
