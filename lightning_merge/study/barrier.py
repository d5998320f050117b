"""Loss and accuracy between ingredients: along a line, over a triangle (linear connectivity)."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer, seed_everything

from lightning_merge.aggregate import average
from lightning_merge.errors import ConfigError
from lightning_merge.progress import tracked
from lightning_merge.study.measure import evaluate
from lightning_merge.study.pool import Pool
from lightning_merge.study.recalibration import Recalibration
from lightning_merge.study.recipe import Recipe


@dataclass
class Line:
    """Measurements along alpha * A + (1 - alpha) * B.

    Attributes:
        name: What to call the line.
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
        """The line as JSON holds it."""
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


def measure_lines(pool: Pool, recipes: Sequence[Recipe], points: int) -> list[Line]:
    """The line between the first two ingredients, for each alignment and recalibration.

    Args:
        pool: The ingredients and their data.
        recipes: Give each line its name, alignment and recalibration, which is done anew at
            every point (see `lines_of`).
        points: How many points, both ends included.

    Raises:
        ConfigError: If the module's test reports no loss or no accuracy.
    """
    shares = [index / (points - 1) for index in range(points)]
    weights = [[alpha, 1 - alpha] for alpha in shares]
    own = _own_losses(pool, 2)
    return [Line(recipe.name, shares, *_measure(pool, recipe, weights), own) for recipe in recipes]


def measure_triangles(pool: Pool, recipes: Sequence[Recipe], points: int) -> list[Triangle]:
    """The triangle between the first three ingredients, likewise.

    Args:
        pool: The ingredients and their data.
        recipes: As for `measure_lines`.
        points: How many points on each side, both corners included: `points * (points + 1)
            / 2` in all.

    Raises:
        ConfigError: If the module's test reports no loss or no accuracy.
    """
    weights = triangle_weights(points)
    own = _own_losses(pool, 3)
    return [
        Triangle(recipe.name, weights, *_measure(pool, recipe, weights), own) for recipe in recipes
    ]


def triangle_weights(points: int) -> list[list[float]]:
    """A grid of convex weights of three, with so many points on each side."""
    last = points - 1
    return [
        [a / last, b / last, (last - a - b) / last]
        for a in range(last, -1, -1)
        for b in range(last - a, -1, -1)
    ]


def check_triangle(points: int, ingredients: int) -> None:
    """Checks that a triangle has three corners.

    Raises:
        ConfigError: If `points` is neither 0 (no triangle) nor 2 or more, or if there are
            fewer than three ingredients.
    """
    if points == 1 or points < 0:
        raise ConfigError(f"triangle is {points}: choose 2 points or more, or 0 for no triangle")
    if points and ingredients < 3:
        raise ConfigError(
            f"a triangle lies between three ingredients, there are {ingredients}: give three, or "
            "leave --triangle out"
        )


def _measure(
    pool: Pool, recipe: Recipe, weights: Sequence[Sequence[float]]
) -> tuple[list[float], list[float]]:
    """Test loss and accuracy of averages of the first ingredients with given weights."""
    states = pool.align(recipe.align)[0][: len(weights[0])]
    recalibrate = Recalibration(recipe.recalibrate, states, pool, recipe.name)
    trainer = pool.trainer()
    losses, accuracies = [], []
    seed_everything(pool.seed, verbose=False)
    for shares in tracked(weights, f"Loss barrier, {recipe.name}", pool.progress):
        module = pool.build(average(states, shares))
        recalibrate(module, shares)
        loss, accuracy = _tested(module, pool, trainer)
        losses.append(loss)
        accuracies.append(accuracy)
    return losses, accuracies


def _own_losses(pool: Pool, count: int) -> list[float]:
    trainer = pool.trainer()
    return [_tested(pool.build(state), pool, trainer)[0] for state in pool.states[:count]]


def _tested(module: LightningModule, pool: Pool, trainer: Trainer) -> tuple[float, float]:
    metrics, _ = evaluate(module, pool.data, trainer)
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
