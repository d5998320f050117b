"""The contract of a sweep: measurements beside the table, of one option of a comparison."""

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from lightning_merge.checkpoint import StateDict
from lightning_merge.measure.path_recipes import Given
from lightning_merge.recipe.build import Plain
from lightning_merge.recipe.context import Context
from lightning_merge.registry import Registry

MergedWeights = Callable[[str, int], StateDict]
"""The merged weights of a recipe's name and a number of ingredients."""


class Sweep(ABC):
    """A series of measurements: along an interpolation path, over factors of the weights, ...

    A registered sweep has an option of its own in `compare` and `study`, is a kind of work, and
    is stored under its key. Figures of it are registered apart (`plots`).

    Attributes:
        option: The option's name; a value that is empty or 0 leaves the sweep out.
        type: The option's type.
        default: The option's default.
        help: The option's help.
        key: The name of the measurements in results.
        title: What to call the piece of work.
        reads_merges: Whether it needs the weights that the recipes have merged.
    """

    option: ClassVar[str]
    type: ClassVar[Any]
    default: ClassVar[Any]
    help: ClassVar[str]
    key: ClassVar[str]
    title: ClassVar[str]
    reads_merges: ClassVar[bool] = False

    def check(self, value: Any, ingredients: int) -> None:
        """Checks the option's value, before anything is computed.

        Raises:
            ConfigError: If it does not suit that many ingredients.
        """
        del value, ingredients

    def check_context(self, context: Context) -> None:
        """Checks that the data suit, before anything is computed.

        Raises:
            ConfigError: If they do not.
        """
        del context

    @abstractmethod
    def settings(self, value: Any, recipes: Sequence[Given], sizes: Sequence[int]) -> Plain:
        """All that determines the outcome beside the context, as plain configuration.

        Args:
            value: The option's value.
            recipes: The comparison's recipes, as objects or as plain configuration.
            sizes: On how many ingredients they are run.
        """

    @abstractmethod
    def measure(self, context: Context, settings: Plain, weights: MergedWeights) -> list[Plain]:
        """The measurements, as in JSON.

        Args:
            context: The ingredients and their data.
            settings: As `settings` gave them.
            weights: Gives merged weights, where the sweep reads them.
        """

    def tables(self, found: Sequence[Mapping[str, Any]]) -> list[list[list[str]]]:
        """Tables for the report (rows of cells, headings first) of the results of all seeds."""
        del found
        return []


sweeps: Registry[type[Sweep]] = Registry("sweeps", "lightning_merge.measure.sweeps")


def chosen_sweeps(config: Mapping[str, Any]) -> dict[Sweep, Any]:
    """The sweeps whose options (by name) are set, with their values."""
    made = (entry.value() for entry in sweeps)
    return {sweep: config[sweep.option] for sweep in made if config.get(sweep.option)}


def sweep_of(option: str) -> Sweep:
    """The sweep that an option stands for."""
    return next(entry.value() for entry in sweeps if entry.value.option == option)


def mean_cell(values: Sequence[float | None]) -> str:
    """The mean over all seeds as a table shows it; `-` where one of them has no finite value."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return f"{statistics.fmean(known):.4f}" if len(known) == len(values) else "-"


def by_name(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Measurements, from several seeds, by their name."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for one in found:
        grouped.setdefault(one["name"], []).append(one)
    return grouped
