"""Loss and accuracy along the line between two ingredients (linear mode connectivity)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from lightning_merge.aggregate import interpolate
from lightning_merge.align import Matching
from lightning_merge.errors import ConfigError
from lightning_merge.progress import tracked
from lightning_merge.study.measure import evaluate
from lightning_merge.study.pool import Pool


@dataclass
class Line:
    """Measurements along alpha * A + (1 - alpha) * B.

    Attributes:
        name: What to call the line.
        alpha: The shares of A, from 0 to 1.
        loss: The test loss at each of them.
        accuracy: The test accuracy at each of them.
    """

    name: str
    alpha: list[float]
    loss: list[float]
    accuracy: list[float]

    @property
    def barrier(self) -> float:
        """How far the loss rises above the line between its ends (Frankle et al. 2020)."""
        a, b = self.loss[-1], self.loss[0]
        return max(
            loss - (alpha * a + (1 - alpha) * b)
            for alpha, loss in zip(self.alpha, self.loss, strict=True)
        )

    def plain(self) -> dict[str, Any]:
        """The line as JSON holds it."""
        return {**asdict(self), "barrier": self.barrier}


def measure_lines(
    pool: Pool,
    matching: Matching,
    points: int,
) -> list[Line]:
    """The line between the first two ingredients: as they are, aligned, aligned and reset.

    Args:
        pool: The ingredients and their data.
        matching: How the second one is aligned to the first.
        points: How many points, both ends included.

    Raises:
        ConfigError: If the module's test reports no loss or no accuracy.

    Returns:
        Three lines; with BatchNorm reset at every point in the last one (left out where
        the network has no BatchNorm).
    """
    aligned, _ = pool.align(matching)
    a, direct, permuted = pool.states[0], pool.states[1], aligned[1]
    lines = [
        _line("direct", a, direct, pool, points),
        _line("aligned", a, permuted, pool, points),
    ]
    if pool.reset_batchnorm(pool.build(a)):
        name = "aligned, BatchNorm reset"
        lines.append(_line(name, a, permuted, pool, points, reset=True))
    return lines


def _line(
    name: str,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    pool: Pool,
    points: int,
    reset: bool = False,
) -> Line:
    line = Line(name, [], [], [])
    trainer = pool.trainer()
    shares = [index / (points - 1) for index in range(points)]
    for alpha in tracked(shares, f"Loss barrier, {name}", pool.progress):
        module = pool.build(interpolate(a, b, alpha))
        if reset:
            pool.reset_batchnorm(module)
        metrics, _ = evaluate(module, pool.data, trainer)
        if not {"loss", "accuracy"} <= metrics.keys():
            raise ConfigError(
                "the barrier needs a test_step that logs test_loss and test_accuracy or test_acc, "
                f"not only {', '.join(metrics) or 'nothing'}; leave --barrier out"
            )
        line.alpha.append(alpha)
        line.loss.append(metrics["loss"])
        line.accuracy.append(metrics["accuracy"])
    return line
