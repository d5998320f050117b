"""Sentences about classes, and names for them, that a text tower can read (`prompts.yaml`)."""

from functools import cache
from importlib.resources import files
from typing import Any

from lightning_merge.errors import ConfigError


def prompts(name: str) -> list[str]:
    """The sentences that suit a set, each with `{}` for the name of a class.

    Args:
        name: A data module's `prompt_set`, such as `mnist`, or `photo` for any photographs.

    Raises:
        ConfigError: If there is no such set.
    """
    known = _texts()
    if name not in known:
        raise ConfigError(f"prompts '{name}' are unknown: choose one of {', '.join(known)}")
    return list(known[name]["prompts"])


def readable(name: str, class_name: str) -> str:
    """A class's name in words.

    Args:
        name: A data module's `prompt_set`.
        class_name: What the set itself calls the class. What no file translates loses its
            underscores, and of SUN397's scenes `church/indoor` becomes `indoor church`.
    """
    translated = _texts().get(name, {}).get("names", {}).get(class_name)
    if translated is not None:
        return str(translated)
    if name == "sun397":
        class_name = " ".join(reversed(class_name.split("/")))
    return class_name.replace("_", " ")


@cache
def _texts() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(
        files("lightning_merge.data").joinpath("prompts.yaml").read_text(encoding="utf-8")
    )
