"""Loss and accuracy between ingredients: along a path, over a triangle (linear connectivity).

Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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


@dataclass
class Path:
    """Measurements along alpha * A + (1 - alpha) * B.

    Attributes:
        name: What to call the path.
        alpha: The shares of A, from 0 to 1.
        loss: The test loss at each of them.
        accuracy: The test accuracy at each of them.
        ingredients: The test losses of A and B as they were given.
    """

    name: str
    alpha: list[float]
    loss: list[float]
    accuracy: list[float]
    ingredients: list[float]

    @property
    def barrier(self) -> float:
        """How far the loss rises above the line between the ingredients' own losses.

        That is the rise above the line's ends (Frankle et al. 2020), where aligning changes
        no function; CCA does, and a bad end must not hide what lies between.
        """
        weights = [[alpha, 1 - alpha] for alpha in self.alpha]
        return _rise(self.loss, weights, self.ingredients)

    def plain(self) -> dict[str, Any]:
        """The path as JSON holds it."""
        return {**asdict(self), "barrier": self.barrier}


@dataclass
class Triangle:
    """Measurements of the convex combinations of three ingredients.

    Attributes:
        name: What to call them.
        weights: The shares of A, B and C at each point; the sum of three is 1.
        loss: The test loss at each point.
        accuracy: The test accuracy at each point.
        ingredients: The test losses of A, B and C as they were given.
    """

    name: str
    weights: list[list[float]]
    loss: list[float]
    accuracy: list[float]
    ingredients: list[float]

    @property
    def barrier(self) -> float:
        """How far the loss rises above the plane through the ingredients' own losses."""
        return _rise(self.loss, self.weights, self.ingredients)

    def plain(self) -> dict[str, Any]:
        """The triangle as JSON holds it."""
        return {**asdict(self), "barrier": self.barrier}


def measure_paths(context: Context, recipes: Sequence[Recipe], points: int) -> list[Path]:
    """The line between the first two ingredients, for each alignment and recalibration.

    Args:
        context: The ingredients and their data.
        recipes: Give each line its name, alignment and recalibration, which is done anew at
            every point (see `path_recipes`).
        points: How many points, both ends included.

    Raises:
        ConfigError: If the module's test reports no loss or no accuracy.
    """
    shares = [index / (points - 1) for index in range(points)]
    weights = [[alpha, 1 - alpha] for alpha in shares]
    own = _own_losses(context, 2)
    return [
        Path(recipe.name, shares, *_measure(context, recipe, weights), own) for recipe in recipes
    ]


def measure_triangles(context: Context, recipes: Sequence[Recipe], points: int) -> list[Triangle]:
    """The triangle between the first three ingredients, likewise.

    Args:
        context: The ingredients and their data.
        recipes: As for `measure_paths`.
        points: How many points on each side, both corners included: `points * (points + 1)
            / 2` in all.

    Raises:
        ConfigError: If the module's test reports no loss or no accuracy.
    """
    weights = triangle_weights(points)
    own = _own_losses(context, 3)
    return [
        Triangle(recipe.name, weights, *_measure(context, recipe, weights), own)
        for recipe in recipes
    ]


def triangle_weights(points: int) -> list[list[float]]:
    """A grid of convex weights of three, with so many points on each side."""
    last = points - 1
    return [
        [a / last, b / last, (last - a - b) / last]
        for a in range(last, -1, -1)
        for b in range(last - a, -1, -1)
    ]


@sweeps.register("barrier", paper="Frankle et al. 2020", needs="a test that logs its loss")
class InterpolationPath(Sweep):
    """Loss and accuracy along the path between the first two ingredients."""

    option = "barrier"
    type = int
    default = 0
    help = (
        "at how many points between the first two ingredients to measure the loss, for each "
        "alignment and recalibration among the recipes"
    )
    key = "lines"
    title = "Loss barrier"

    def check(self, value: int, ingredients: int) -> None:
        """Checks that a path has two ends.

        Raises:
            ConfigError: If there are neither 0 points (no path) nor 2 or more.
        """
        del ingredients
        if value == 1 or value < 0:
            raise ConfigError(f"barrier is {value}: choose 2 points or more, or 0 for no barrier")

    def settings(self, value: int, recipes: Sequence[Given], sizes: Sequence[int]) -> Plain:
        """How many points, and the paths."""
        del sizes
        return {"points": value, "lines": path_recipes(recipes)}

    def measure(self, context: Context, settings: Plain, weights: MergedWeights) -> list[Plain]:
        """The paths (`Path.plain`)."""
        del weights
        recipes = [build_recipe(line) for line in settings["lines"]]
        return [path.plain() for path in measure_paths(context, recipes, settings["points"])]

    def tables(self, found: Sequence[Mapping[str, Any]]) -> list[list[list[str]]]:
        """The barrier, and the accuracy in the middle, of each path."""
        lines = [["line from B to A", "loss barrier", "accuracy at α = 0.5"]]
        for name, same in by_name(found).items():
            middle = [line["accuracy"][len(line["accuracy"]) // 2] for line in same]
            barrier = mean_cell([line["barrier"] for line in same])
            lines.append([name, barrier, mean_cell(middle)])
        return [lines]


@sweeps.register("triangle", paper="Frankle et al. 2020", needs="three ingredients")
class InterpolationTriangle(Sweep):
    """Loss and accuracy over the triangle between the first three ingredients."""

    option = "triangle"
    type = int
    default = 0
    help = "the same over the triangle between the first three, with so many points on each side"
    key = "triangles"
    title = "Triangle"

    def check(self, value: int, ingredients: int) -> None:
        """Checks that a triangle has three corners.

        Raises:
            ConfigError: If there are neither 0 points (no triangle) nor 2 or more, or fewer than
                three ingredients.
        """
        if value == 1 or value < 0:
            raise ConfigError(f"triangle is {value}: choose 2 points or more, or 0 for no triangle")
        if value and ingredients < 3:
            raise ConfigError(
                f"a triangle lies between three ingredients, there are {ingredients}: give three, "
                "or leave --triangle out"
            )

    def settings(self, value: int, recipes: Sequence[Given], sizes: Sequence[int]) -> Plain:
        """How many points, and the alignments and recalibrations."""
        del sizes
        return {"points": value, "lines": path_recipes(recipes)}

    def measure(self, context: Context, settings: Plain, weights: MergedWeights) -> list[Plain]:
        """The triangles (`Triangle.plain`)."""
        del weights
        recipes = [build_recipe(line) for line in settings["lines"]]
        found = measure_triangles(context, recipes, settings["points"])
        return [triangle.plain() for triangle in found]

    def tables(self, found: Sequence[Mapping[str, Any]]) -> list[list[list[str]]]:
        """The barrier, and the lowest accuracy, of each triangle."""
        lines = [["triangle A, B, C", "loss barrier", "lowest accuracy"]]
        for name, same in by_name(found).items():
            lowest = mean_cell([min(triangle["accuracy"]) for triangle in same])
            lines.append([name, mean_cell([one["barrier"] for one in same]), lowest])
        return [lines]


def _measure(
    context: Context, recipe: Recipe, weights: Sequence[Sequence[float]]
) -> tuple[list[float], list[float]]:
    """Test loss and accuracy of averages of the first ingredients with given weights."""
    if recipe.recalibration is not None:
        recipe.recalibration.check(context.module, recipe.name)
    ended = context.first(len(weights[0])).recalibrated_by(recipe.recalibration, recipe.name)
    states = align(recipe.align, ended).states
    recalibrate = recalibrate_with(ended, states)
    trainer = context.trainer()
    losses, accuracies = [], []
    seed_everything(context.seed, verbose=False)
    for shares in tracked(weights, f"Loss barrier, {recipe.name}", context.progress):
        module = context.build(average(states, shares))
        recalibrate(module, shares)
        loss, accuracy = _tested(module, context, trainer)
        losses.append(loss)
        accuracies.append(accuracy)
    return losses, accuracies


def _own_losses(context: Context, count: int) -> list[float]:
    trainer = context.trainer()
    return [_tested(context.build(state), context, trainer)[0] for state in context.states[:count]]


def _tested(module: LightningModule, context: Context, trainer: Trainer) -> tuple[float, float]:
    metrics, _ = evaluate(module, context.data, trainer)
    if not {"loss", "accuracy"} <= metrics.keys():
        raise ConfigError(
            "the barrier needs a test_step that logs test_loss and test_accuracy or test_acc, "
            f"not only {', '.join(metrics) or 'nothing'}; leave --barrier out"
        )
    return metrics["loss"], metrics["accuracy"]


def _rise(
    losses: Sequence[float], weights: Sequence[Sequence[float]], ends: Sequence[float]
) -> float:
    """The largest rise above what the ends have on average; NaN where a loss is."""
    rises = [
        loss - sum(share * end for share, end in zip(shares, ends, strict=True))
        for loss, shares in zip(losses, weights, strict=True)
    ]
    return math.nan if any(math.isnan(rise) for rise in rises) else max(rises)
