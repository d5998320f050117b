"""What a study has to do: a list of tasks, each under a hash of all that determines it."""

import hashlib
import json
from collections.abc import Mapping
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
        seeds: One repetition each. A seed determines the initial weights, the order of the
            batches, and the split where the data module has a `split_seed`.
        trainer: The Trainer's arguments for everything, `precision` for example.
        barrier: At how many points of the line between the first two ingredients to
            measure the loss, for each alignment and recalibration that the recipes name; 0
            for none.
        triangle: How many points each side has of the triangle between the first three
            ingredients, for the same; 0 for none.
        statistics_examples: How many training examples statistics are read from; None for all.
        title: What tables and figures are headed with.
    """

    data: Plain
    model: Plain
    recipes: list[Plain]
    ingredients: list[Plain] = field(default_factory=lambda: [{}, {}])
    training: Plain = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    trainer: Plain = field(default_factory=dict)
    barrier: int = 0
    triangle: int = 0
    statistics_examples: int | None = None
    title: str = "study"


@dataclass(frozen=True)
class Task:
    """One training, merge, barrier or triangle.

    Attributes:
        key: Hash of all that determines the outcome.
        kind: `ingredient`, `merge`, `barrier` or `triangle`.
        name: What to call it.
        seed: The repetition that it belongs to.
        settings: What determines the outcome.
        needs: The keys of the ingredients that it works on.
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
        For each seed the ingredients, the merges in the order of the recipes, the barrier,
        the triangle.

    Raises:
        ConfigError: If there are no seeds, fewer than two ingredients, or one barrier point.
    """
    check_barrier(study.barrier)
    if not study.seeds or len(set(study.seeds)) != len(study.seeds):
        raise ConfigError("a study needs seeds that differ from each other: set `seeds`")
    if len(study.ingredients) < 2:
        raise ConfigError("a study needs two ingredients or more: list them under `ingredients`")
    return [task for seed in study.seeds for task in _repetition(study, seed)]


def check_barrier(points: int) -> None:
    """Checks that a line has two ends.

    Raises:
        ConfigError: If `points` is neither 0 (no line) nor 2 or more.
    """
    if points == 1 or points < 0:
        raise ConfigError(f"barrier is {points}: choose 2 points or more, or 0 for no barrier")


def _repetition(study: Study, seed: int) -> list[Task]:
    tasks = []
    for index, changes in enumerate(study.ingredients):
        settings = {
            "model": study.model,
            "data": data_for(study.data, seed, changes),
            "trainer": {**_determining(study.trainer), **study.training},
            # Far apart, so that no two repetitions ever share an initialisation.
            "seed": 1000 * seed + index,
        }
        tasks.append(_task("ingredient", f"Ingredient {index + 1}", seed, settings))
    needs = tuple(task.key for task in tasks)
    common = {
        "model": study.model,
        "data": data_for(study.data, seed, {}),
        "trainer": _determining(study.trainer),
        "seed": seed,
    }
    if study.statistics_examples is not None:
        common["statistics_examples"] = study.statistics_examples
    for recipe in study.recipes:
        settings = {**common, "recipe": recipe}
        tasks.append(_task("merge", recipe["name"], seed, settings, needs))
    if study.barrier:
        settings = {**common, "points": study.barrier, "lines": lines_of(study.recipes)}
        tasks.append(_task("barrier", "Loss barrier", seed, settings, needs))
    if study.triangle:
        settings = {**common, "points": study.triangle, "lines": lines_of(study.recipes)}
        tasks.append(_task("triangle", "Triangle", seed, settings, needs))
    return tasks


def data_for(data: Plain, seed: int, changes: Mapping[str, Any]) -> Plain:
    """A data module's configuration with some `init_args` changed, and split by `seed`."""
    arguments = {**data.get("init_args", {})}
    if "split_seed" in arguments:
        arguments["split_seed"] = seed
    return {**data, "init_args": {**arguments, **changes}}


def _determining(trainer: Mapping[str, Any]) -> Plain:
    shown = ("logger", "enable_progress_bar", "enable_model_summary")
    return {
        name: value for name, value in trainer.items() if name not in shown and value is not None
    }


def _task(kind: str, name: str, seed: int, settings: Plain, needs: tuple[str, ...] = ()) -> Task:
    text = json.dumps([kind, settings, needs], sort_keys=True, default=str)
    return Task(hashlib.sha256(text.encode()).hexdigest()[:16], kind, name, seed, settings, needs)
