"""What a study has to do: a list of tasks, each under a hash of all that determines it."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_merge.errors import ConfigError
from lightning_merge.study.lines import lines_of

Plain = dict[str, Any]
"""Nested dicts, lists, numbers and strings, as a YAML file holds them."""


@dataclass
class Study:
    """Ingredients to train, and recipes to run on them, for several seeds.

    Attributes:
        data: `class_path` and `init_args` of the data module, for merging and testing.
        model: `class_path` and `init_args` of the ingredients' LightningModule.
        recipes: The recipes, as plain configuration.
        ingredients: For each ingredient what differs in its data module's `init_args`.
        training: The Trainer's arguments for the ingredients, `max_epochs` above all.
        start: The Trainer's arguments for a network that is trained first, on the data as they are
            under `data`, and that all ingredients of a seed start from; None where each starts
            from initial weights of its own.
        seeds: One repetition each. A seed determines the initial weights, the order of the
            batches, and the split where the data module has a `split_seed`.
        trainer: The Trainer's arguments for everything, `precision` for example.
        barrier: At how many points of the line between the first two ingredients to
            measure the loss, for each alignment and recalibration that the recipes name; 0
            for none.
        triangle: How many points each side has of the triangle between the first three
            ingredients, for the same; 0 for none.
        pool_sizes: How many of the ingredients, the first ones, each recipe is run on: once for
            each number; on all of them if none is given.
        magnitudes: By what factors to multiply the ingredients' weights, for soups and
            ensembles; none for no such measurement.
        statistics_examples: How many training examples statistics are read from; None for all.
        title: What tables and figures are headed with.
    """

    data: Plain
    model: Plain
    recipes: list[Plain]
    ingredients: list[Plain] = field(default_factory=lambda: [{}, {}])
    training: Plain = field(default_factory=dict)
    start: Plain | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    trainer: Plain = field(default_factory=dict)
    barrier: int = 0
    triangle: int = 0
    pool_sizes: list[int] = field(default_factory=list)
    magnitudes: list[float] = field(default_factory=list)
    statistics_examples: int | None = None
    title: str = "study"


@dataclass(frozen=True)
class Task:
    """One training, merge, barrier, triangle or series of magnitudes.

    Attributes:
        key: Hash of all that determines the outcome.
        kind: `start`, `ingredient`, `merge`, `barrier`, `triangle` or `magnitudes`.
        name: What to call it.
        seed: The repetition that it belongs to.
        settings: What determines the outcome.
        needs: The keys of the ingredients that it works on; an ingredient's is its start.
    """

    key: str
    kind: str
    name: str
    seed: int
    settings: Plain
    needs: tuple[str, ...] = ()


def plan(study: Study) -> list[Task]:
    """The tasks of a study, in an order in which they can be done.

    Args:
        study: The study.

    Returns:
        For each seed the start (if any), the ingredients, for each number of them the merges in
        the order of the recipes, then the barrier, the triangle, the magnitudes.

    Raises:
        ConfigError: If there are no seeds, fewer than two ingredients, one barrier point, a
            number of ingredients that there are not, or a factor that is not positive.
    """
    check_barrier(study.barrier)
    check_magnitudes(study.magnitudes)
    if not study.seeds or len(set(study.seeds)) != len(study.seeds):
        raise ConfigError("a study needs seeds that differ from each other: set `seeds`")
    if len(study.ingredients) < 2:
        raise ConfigError("a study needs two ingredients or more: list them under `ingredients`")
    check_pool_sizes(study.pool_sizes, len(study.ingredients))
    return [task for seed in study.seeds for task in _repetition(study, seed)]


def check_pool_sizes(sizes: Sequence[int], ingredients: int) -> None:
    """Checks that there are as many ingredients as are to be merged.

    Raises:
        ConfigError: If a number is below 2 or above that of the ingredients, or given twice.
    """
    if any(not 2 <= size <= ingredients for size in sizes) or len(set(sizes)) != len(sizes):
        raise ConfigError(
            f"pool_sizes are {list(sizes)}: give numbers from 2 to {ingredients}, the number of "
            "ingredients, each once"
        )


def check_barrier(points: int) -> None:
    """Checks that a line has two ends.

    Raises:
        ConfigError: If `points` is neither 0 (no line) nor 2 or more.
    """
    if points == 1 or points < 0:
        raise ConfigError(f"barrier is {points}: choose 2 points or more, or 0 for no barrier")


def check_magnitudes(factors: Sequence[float]) -> None:
    """Checks that weights can be multiplied by these factors.

    Raises:
        ConfigError: If one is not positive, or is given twice.
    """
    if any(not 0 < factor < math.inf for factor in factors) or len(set(factors)) != len(factors):
        raise ConfigError(
            f"magnitudes are {list(factors)}: give positive numbers that differ, for example "
            "'[0.5, 1, 2]'"
        )


def _repetition(study: Study, seed: int) -> list[Task]:
    tasks = []
    before: tuple[str, ...] = ()
    if study.start is not None:
        settings = {
            "model": study.model,
            "data": data_for(study.data, seed, {}),
            "trainer": {**determining(study.trainer), **study.start},
            "seed": 1000 * seed + 999,
        }
        tasks.append(_task("start", "Common start", seed, settings))
        before = (tasks[0].key,)
    for index, changes in enumerate(study.ingredients):
        settings = {
            "model": study.model,
            "data": data_for(study.data, seed, changes),
            "trainer": {**determining(study.trainer), **study.training},
            # Far apart, so that no two repetitions ever share an initialisation.
            "seed": 1000 * seed + index,
        }
        tasks.append(_task("ingredient", f"Ingredient {index + 1}", seed, settings, before))
    needs = tuple(task.key for task in tasks if task.kind == "ingredient")
    common = {
        "model": study.model,
        "data": data_for(study.data, seed, {}),
        "trainer": determining(study.trainer),
        "seed": seed,
    }
    if study.statistics_examples is not None:
        common["statistics_examples"] = study.statistics_examples
    sizes = study.pool_sizes or [len(needs)]
    merges = [
        _task("merge", recipe["name"], seed, {**common, "recipe": recipe}, needs[:size])
        for size in sizes
        for recipe in study.recipes
    ]
    tasks += merges
    if study.barrier:
        settings = {**common, "points": study.barrier, "lines": lines_of(study.recipes)}
        tasks.append(_task("barrier", "Loss barrier", seed, settings, needs))
    if study.triangle:
        settings = {**common, "points": study.triangle, "lines": lines_of(study.recipes)}
        tasks.append(_task("triangle", "Triangle", seed, settings, needs))
    if study.magnitudes:
        settings = {
            **common,
            "factors": study.magnitudes,
            "recipes": study.recipes,
            "pool_sizes": sizes,
            "merges": [[task.name, len(task.needs), task.key] for task in merges],
        }
        tasks.append(_task("magnitudes", "Weight magnitudes", seed, settings, needs))
    return tasks


def data_for(data: Plain, seed: int, changes: Mapping[str, Any]) -> Plain:
    """A data module's configuration with some `init_args` changed, and split by `seed`."""
    arguments = {**data.get("init_args", {})}
    if "split_seed" in arguments:
        arguments["split_seed"] = seed
    return {**data, "init_args": {**arguments, **changes}}


def determining(trainer: Mapping[str, Any]) -> Plain:
    """Those of the Trainer's arguments that are set, without those that only show something."""
    shown = ("logger", "enable_progress_bar", "enable_model_summary")
    return {
        name: value for name, value in trainer.items() if name not in shown and value is not None
    }


def _task(kind: str, name: str, seed: int, settings: Plain, needs: tuple[str, ...] = ()) -> Task:
    text = json.dumps([kind, settings, needs], sort_keys=True, default=str)
    return Task(hashlib.sha256(text.encode()).hexdigest()[:16], kind, name, seed, settings, needs)
