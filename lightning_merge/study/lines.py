"""Which lines of the loss landscape a list of recipes asks for."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Plain = dict[str, Any]

# As the papers call them.
_NAMES = {
    "ActivationMatching": "Permute",
    "WeightMatching": "Weight matching",
    "CCAMatching": "CCA",
}
_RECALIBRATIONS = {"batchnorm": "reset", "repair": "REPAIR"}


def lines_of(recipes: Sequence[Mapping[str, Any]]) -> list[Plain]:
    """A plain average for each way of aligning and recalibrating that recipes name.

    Args:
        recipes: Recipes as plain configuration.

    Returns:
        Recipes, as plain configuration: first the direct line, then each distinct pair of
        `align` and `recalibrate` among the recipes whose `aggregate` is `Average`, in order
        of appearance; where there is no such recipe, among all of them. Their names say the
        pair (`direct`, `Permute + reset`), with the matching's arguments where two differ in
        nothing else.
    """
    averaging = [recipe for recipe in recipes if class_name(recipe["aggregate"]) == "Average"]
    pairs: dict[str, tuple[Any, str | None]] = {_text([None, None]): (None, None)}
    for recipe in averaging or recipes:
        pair = recipe.get("align"), recipe.get("recalibrate")
        pairs.setdefault(_text([_as_dict(pair[0]), pair[1]]), pair)
    names = Counter(_line_name(*pair) for pair in pairs.values())
    return [
        {
            "name": _line_name(align, recalibrate, names[_line_name(align, recalibrate)] > 1),
            "aggregate": "Average",
            "align": align,
            "recalibrate": recalibrate,
        }
        for align, recalibrate in pairs.values()
    ]


def _line_name(align: Any, recalibrate: str | None, with_arguments: bool = False) -> str:
    if align is None:
        name = "direct"
    else:
        kind = class_name(align)
        name = _NAMES.get(kind, kind)
        arguments = _as_dict(align)["init_args"]
        if with_arguments and arguments:
            name += f" ({', '.join(f'{key}={value}' for key, value in arguments.items())})"
    return name if recalibrate is None else f"{name} + {_RECALIBRATIONS[recalibrate]}"


def class_name(config: Any) -> str:
    """The name of a class in either form of its configuration, without its module."""
    path = config["class_path"] if isinstance(config, Mapping) else str(config)
    return str(path).rpartition(".")[2]


def _as_dict(config: Any) -> Any:
    """A class's configuration in the longer of its two forms."""
    if config is None:
        return None
    arguments = config.get("init_args") if isinstance(config, Mapping) else None
    return {"class": class_name(config), "init_args": dict(arguments or {})}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
