"""Which interpolation paths to measure for a list of recipes."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from lightning_merge.recipe.build import build_recipe
from lightning_merge.recipe.cache import identity
from lightning_merge.recipe.recipe import Recipe

Given = Recipe | Mapping[str, Any]
"""A recipe, as an object or as plain configuration."""


def path_recipes(recipes: Sequence[Given]) -> list[Any]:
    """A plain average for each way of aligning and recalibrating that recipes name.

    Recipes, as plain configuration where they were given so: first the direct path, then each
    distinct pair of `align` and `recalibrate` among the recipes that give weighted means; where
    there is no such recipe, among all of them; in order of appearance. Their names are the pairs'
    (`direct`, `Permute + reset`), with the matching's arguments where two differ in nothing else.
    """
    built = [build_recipe(recipe) for recipe in recipes]
    means = [made.aggregate.weights_of_mean(2) is not None for made in built]
    none = identity(None), identity(None)
    pairs: dict[tuple[Hashable, Hashable], tuple[Recipe | None, Any]] = {none: (None, None)}
    for made, given, mean in zip(built, recipes, means, strict=True):
        if mean or not any(means):
            pair = identity(made.align), identity(made.recalibration)
            pairs.setdefault(pair, (made, given))
    names = Counter(_name(made) for made, _ in pairs.values())
    return [
        _average(given, _name(made, given if names[_name(made)] > 1 else None))
        for made, given in pairs.values()
    ]


def _average(given: Any, name: str) -> Any:
    if isinstance(given, Recipe):
        from lightning_merge.recipe.aggregates import Average

        return Recipe(name, Average(), given.align, given.recalibrate)
    parts = {key: (given or {}).get(key) for key in ("align", "recalibrate")}
    return {"name": name, "aggregate": "Average", **parts}


def _name(made: Recipe | None, with_arguments: Any = None) -> str:
    if made is None:
        return "direct"
    name = "direct" if made.align is None else made.align.label
    arguments = _arguments(with_arguments)
    if arguments:
        name += f" ({', '.join(f'{key}={value}' for key, value in arguments.items())})"
    return name if made.recalibration is None else f"{name} + {made.recalibration.label}"


def _arguments(given: Any) -> dict[str, Any]:
    """What a recipe's matching was configured with."""
    if isinstance(given, Recipe):
        return vars(given.align) if given.align is not None else {}
    align = (given or {}).get("align")
    return dict(align.get("init_args") or {}) if isinstance(align, Mapping) else {}
