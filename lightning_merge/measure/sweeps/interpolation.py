"""Loss and accuracy between ingredients: along a path, over a triangle (linear connectivity).

Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis".
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import LightningModule, Trainer, seed_everything

from lightning_merge.aggregate import average
from lightning_merge.errors import ConfigError
from lightning_merge.measure.measurement import evaluate
from lightning_merge.measure.path_recipes import Given, path_recipes
from lightning_merge.measure.sweep import MergedWeights, Plain, Sweep, by_name, mean_cell, sweeps
from lightning_merge.progress import tracked
from lightning_merge.recipe.aligning import align
from lightning_merge.recipe.build import build_recipe
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.recalibration import recalibrate_with
from lightning_merge.recipe.recipe import Recipe

_BARRIERS = ("loss barrier", "accuracy barrier")


@dataclass
class _Measured(ABC):
    """Measurements of convex combinations of the first ingredients: test loss and accuracy.

    `ingredients` and `accuracies` are test losses and accuracies of the ingredients as they were
    given.
    """

    name: str
    loss: list[float]
    accuracy: list[float]
    ingredients: list[float]
    accuracies: list[float]

    @property
    @abstractmethod
    def shares(self) -> list[list[float]]:
        """The ingredients' shares at each point; they add up to 1."""

    @property
    def barrier(self) -> float:
        """How far the loss rises above the ingredients' own losses, weighted likewise.

        For a path that is the rise above its ends (Frankle et al. 2020), where aligning changes
        no function; CCA does, and a bad end must not hide what lies between. NaN where a loss is.
        """
        return self._rise(self.loss, self.ingredients)

    @property
    def accuracy_barrier(self) -> float:
        """How far the accuracy falls below the ingredients' own, likewise."""
        return self._rise([-one for one in self.accuracy], [-one for one in self.accuracies])

    def _rise(self, values: Sequence[float], own: Sequence[float]) -> float:
        rises = [
            value - sum(share * one for share, one in zip(shares, own, strict=True))
            for value, shares in zip(values, self.shares, strict=True)
        ]
        return math.nan if any(map(math.isnan, rises)) else max(rises)

    def plain(self) -> Plain:
        """The measurements as in JSON."""
        barriers = {"barrier": self.barrier, "accuracy_barrier": self.accuracy_barrier}
        return {**asdict(self), **barriers}


@dataclass
class Path(_Measured):
    """Measurements along alpha * A + (1 - alpha) * B, with alpha from 0 to 1."""

    alpha: list[float]

    @property
    def shares(self) -> list[list[float]]:
        """The shares of A and B."""
        return [[alpha, 1 - alpha] for alpha in self.alpha]


@dataclass
class Triangle(_Measured):
    """Measurements of the convex combinations of A, B and C; `weights` are their shares."""

    weights: list[list[float]]

    @property
    def shares(self) -> list[list[float]]:
        """The shares of A, B and C."""
        return self.weights


def measure_paths(context: Context, recipes: Sequence[Recipe], points: int) -> list[Path]:
    """The path between the first two ingredients, for each alignment and recalibration.

    Recipes give each path its name, alignment and recalibration, which is done anew at every one of
    the points, both ends included (see `path_recipes`).
    """
    alpha = [index / (points - 1) for index in range(points)]
    weights = [[one, 1 - one] for one in alpha]
    return [Path(*found, alpha) for found in _measure(context, recipes, weights)]


def measure_triangles(context: Context, recipes: Sequence[Recipe], points: int) -> list[Triangle]:
    """The triangle between the first three ingredients, likewise, with so many points on each side.

    Both corners are included: `points * (points + 1) / 2` points in all.
    """
    weights = triangle_weights(points)
    return [Triangle(*found, weights) for found in _measure(context, recipes, weights)]


def triangle_weights(points: int) -> list[list[float]]:
    """A grid of convex weights of three, with so many points on each side."""
    last = points - 1
    return [
        [a / last, b / last, (last - a - b) / last]
        for a in range(last, -1, -1)
        for b in range(last - a, -1, -1)
    ]


class _Interpolation(Sweep):
    type = int
    default = 0
    measured: ClassVar["staticmethod[[Context, Sequence[Recipe], int], Sequence[_Measured]]"]

    def settings(self, value: int, recipes: Sequence[Given], sizes: Sequence[int]) -> Plain:
        """How many points, and the alignments and recalibrations."""
        del sizes
        return {"points": value, "lines": path_recipes(recipes)}

    def measure(self, context: Context, settings: Plain, weights: MergedWeights) -> list[Plain]:
        """The paths or triangles, with their barriers."""
        del weights
        recipes = [build_recipe(line) for line in settings["lines"]]
        return [found.plain() for found in self.measured(context, recipes, settings["points"])]


@sweeps.register("barrier", paper="Frankle et al. 2020", needs="a test that logs its loss")
class InterpolationPath(_Interpolation):
    """Loss and accuracy along the path between the first two ingredients."""

    option = "barrier"
    help = (
        "at how many points between the first two ingredients to measure the loss, for each "
        "alignment and recalibration among the recipes"
    )
    key = "lines"
    title = "Loss barrier"
    measured = staticmethod(measure_paths)

    def check(self, value: int, ingredients: int) -> None:
        """Checks that a path has two ends, or that there is none."""
        del ingredients
        if value == 1 or value < 0:
            raise ConfigError(f"barrier is {value}: choose 2 points or more, or 0 for no barrier")

    def tables(self, found: Sequence[Mapping[str, Any]]) -> list[list[list[str]]]:
        """The barriers, and the accuracy in the middle, of each path."""
        lines = [["line from B to A", *_BARRIERS, "accuracy at α = 0.5"]]
        for name, same in by_name(found).items():
            # An even number of points has none in the middle.
            middle = [
                dict(zip(one["alpha"], one["accuracy"], strict=True)).get(0.5) for one in same
            ]
            lines.append([name, *_barriers(same), mean_cell(middle)])
        return [lines]


@sweeps.register("triangle", paper="Frankle et al. 2020", needs="three ingredients")
class InterpolationTriangle(_Interpolation):
    """Loss and accuracy over the triangle between the first three ingredients."""

    option = "triangle"
    help = "the same over the triangle between the first three, with so many points on each side"
    key = "triangles"
    title = "Triangle"
    measured = staticmethod(measure_triangles)

    def check(self, value: int, ingredients: int) -> None:
        """Checks that a triangle has three corners, or that there is none."""
        if value == 1 or value < 0:
            raise ConfigError(f"triangle is {value}: choose 2 points or more, or 0 for no triangle")
        if value and ingredients < 3:
            raise ConfigError(
                f"a triangle lies between three ingredients, there are {ingredients}: give three, "
                "or leave --triangle out"
            )

    def tables(self, found: Sequence[Mapping[str, Any]]) -> list[list[list[str]]]:
        """The barriers, and the lowest accuracy, of each triangle."""
        lines = [["triangle A, B, C", *_BARRIERS, "lowest accuracy"]]
        for name, same in by_name(found).items():
            # An accuracy that is no number is stored as null.
            lowest = mean_cell([float(np.asarray(one["accuracy"], float).min()) for one in same])
            lines.append([name, *_barriers(same), lowest])
        return [lines]


def _barriers(same: Sequence[Mapping[str, Any]]) -> list[str]:
    # Measurements of earlier versions have no barrier of accuracies.
    return [mean_cell([one.get(key) for one in same]) for key in ("barrier", "accuracy_barrier")]


def _columns(found: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [loss for loss, _ in found], [right for _, right in found]


def _measure(
    context: Context, recipes: Sequence[Recipe], weights: Sequence[Sequence[float]]
) -> Iterator[tuple[str, list[float], list[float], list[float], list[float]]]:
    """Each recipe's name, test losses, accuracies, and the ingredients' own."""
    trainer = context.trainer()
    count = len(weights[0])
    own = [_tested(context.build(one), context, trainer) for one in context.states[:count]]
    for recipe in recipes:
        if recipe.recalibration is not None:
            recipe.recalibration.check(context.module, recipe.name)
        part = context.first(count).recalibrated_by(recipe.recalibration, recipe.name)
        states = align(recipe.align, part).states
        recalibrate = recalibrate_with(part, states)
        trainer = context.trainer()
        seed_everything(context.seed, verbose=False)
        found = []
        for shares in tracked(weights, f"Loss barrier, {recipe.name}", context.progress):
            module = context.build(average(states, shares))
            recalibrate(module, shares)
            found.append(_tested(module, context, trainer))
        (losses, right), (own_losses, own_right) = _columns(found), _columns(own)
        yield recipe.name, losses, right, own_losses, own_right


def _tested(module: LightningModule, context: Context, trainer: Trainer) -> tuple[float, float]:
    metrics, _ = evaluate(module, context.data, trainer)
    if not {"loss", "accuracy"} <= metrics.keys():
        raise ConfigError(
            "the barrier needs a test_step that logs test_loss and test_accuracy or test_acc, "
            f"not only {', '.join(metrics) or 'nothing'}; leave --barrier out"
        )
    return metrics["loss"], metrics["accuracy"]
