"""Axes of accuracies that show the range of the data; one that does not start at 0 says so."""

import math
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

# Where the lowest accuracy is above this share of the axis, one from 0 would be mostly empty, and
# where the highest is below the other, so would one up to 1.
_HIGH, _LOW = 0.5, 0.75


def zoom_accuracy(
    axes: Axes, values: Sequence[float | None], which: Literal["x", "y"] = "y"
) -> float:
    """Sets an axis of accuracies, and returns where it starts.

    That is at 0, or, if all are in its upper half, below the lowest; it goes up to 1, or, if all
    are far from that, to above the highest. An axis that does not start at 0 gets two strokes
    across its lower end, and says so beside its label, which must be set first. The values are all
    that is drawn, with the ends of intervals; what is not finite is ignored.
    """
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    lowest, highest = min(known, default=0.0), max(known, default=1.0)
    top = 1.0 if highest > _LOW else max(0.1, math.ceil(highest * 21.2) / 20)
    start = 0.0
    if lowest > _HIGH * top:
        below = lowest - 0.25 * (top - lowest) - 0.005
        step = 0.01 if lowest > 0.93 else 0.05 if lowest > 0.8 or top < 1 else 0.1
        start = round(max(0.0, math.floor(below / step) * step), 4)
    # A level axis ends where accuracies do; above an upright one there is room for half a dot.
    end = top if which == "x" else top + 0.02 * (top - start)
    setter, label = (
        (axes.set_xlim, axes.set_xlabel) if which == "x" else (axes.set_ylim, axes.set_ylabel)
    )
    setter(start, end)
    if start > 0:
        before = axes.get_xlabel() if which == "x" else axes.get_ylabel()
        label(f"{before}; axis from {start:g}")
        _strokes(axes, which)
    return start


def _strokes(axes: Axes, which: Literal["x", "y"]) -> None:
    """Two short slanted strokes across the axis's lower end: the mark of a broken axis."""
    right, up = (0.1, 0) if which == "x" else (0, 0.1)
    moved = axes.transAxes + ScaledTranslation(right, up, axes.figure.dpi_scale_trans)
    turned = 0 if which == "x" else 90
    axes.text(0, 0, "//", transform=moved, rotation=turned, ha="center", va="center", weight="bold")
