"""Axes of accuracies that start where the data do, and say so."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Where the lowest accuracy is above this, an axis from 0 would be mostly empty.
_HIGH = 0.5


def zoom_accuracy(
    axes: "Axes", values: Sequence[float | None], which: Literal["x", "y"] = "y"
) -> float:
    """Sets an axis of accuracies, from 0 or, if all are above one half, from below the lowest.

    An axis that does not start at 0 gets two strokes across its lower end, and says so beside
    its label, which must be set first.

    Args:
        axes: The axes.
        values: All that is drawn, with the ends of intervals; what is not finite is ignored.
        which: The axis.

    Returns:
        Where the axis starts.
    """
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    lowest = min(known, default=0.0)
    start = 0.0
    if lowest > _HIGH:
        below = lowest - 0.25 * (1 - lowest) - 0.005
        step = 0.1 if lowest < 0.8 else 0.05 if lowest < 0.93 else 0.01
        start = round(max(0.0, math.floor(below / step) * step), 4)
    # A level axis ends where accuracies do; above an upright one there is room for half a dot.
    end = 1.0 if which == "x" else 1 + 0.02 * (1 - start)
    setter, label = (
        (axes.set_xlim, axes.set_xlabel) if which == "x" else (axes.set_ylim, axes.set_ylabel)
    )
    setter(start, end)
    if start > 0:
        before = axes.get_xlabel() if which == "x" else axes.get_ylabel()
        label(f"{before}; axis from {start:g}")
        _strokes(axes, which)
    return start


def _strokes(axes: "Axes", which: Literal["x", "y"]) -> None:
    """Two short slanted strokes across the axis's lower end: the mark of a broken axis."""
    from matplotlib.transforms import ScaledTranslation

    right, up = (0.1, 0) if which == "x" else (0, 0.1)
    moved = axes.transAxes + ScaledTranslation(right, up, axes.figure.dpi_scale_trans)
    turned = 0 if which == "x" else 90
    axes.text(0, 0, "//", transform=moved, rotation=turned, ha="center", va="center", weight="bold")
