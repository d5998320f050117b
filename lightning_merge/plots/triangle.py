"""Loss and accuracy over the triangle of convex combinations of three networks."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from lightning_merge.plots.style import style

_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])
_LEVELS = 12
_COLUMNS = 4
# Cividis looks the same with any colour vision; dark is good in both panels.
_COLOURS = {"loss": "cividis", "accuracy": "cividis_r"}


def plot_triangle(triangles: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draws test loss and accuracy as filled contours over triangles.

    Args:
        triangles: Each with `name`, `weights` (merge coefficients of A, B and C at each point),
            `loss` and `accuracy` (lists of equal length). For triangles with the same name, from
            several seeds, the mean is drawn.
        title: The figure's heading.

    Returns:
        The figure: a column for each name (four at most side by side), losses above accuracies, all
        losses on one scale and all accuracies on another.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for triangle in triangles:
        by_name.setdefault(triangle["name"], []).append(triangle)
    means = {
        what: {
            name: np.asarray([one[what] for one in same], dtype=float).mean(0)
            for name, same in by_name.items()
        }
        for what in _COLOURS
    }
    norms = {
        what: _norm(np.concatenate(list(values.values())), what) for what, values in means.items()
    }
    names = list(by_name)
    # Equally many in each block, rather than one left over in the last.
    columns = -(-len(names) // -(-len(names) // _COLUMNS))
    blocks = [names[start : start + columns] for start in range(0, len(names), columns)]
    with style():
        size = (1.1 + 2.1 * columns, 0.4 + 4.5 * len(blocks))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(2 * len(blocks), columns, squeeze=False)
        for row, panels in enumerate(grid):
            what = list(_COLOURS)[row % 2]
            for axes, name in zip_longest(panels, blocks[row // 2]):
                axes.set_axis_off()
                if name is None:
                    continue
                weights = np.asarray(by_name[name][0]["weights"])
                _draw(axes, weights, means[what][name], norms[what], _COLOURS[what])
                if what == "loss":
                    axes.set_title(name, loc="center", fontsize=9)
            scale = ScalarMappable(norms[what], _COLOURS[what])
            bar = figure.colorbar(scale, ax=list(panels), shrink=0.85, pad=0.02)
            bar.set_label(f"test {what}")
        figure.suptitle(title or "Between three networks", x=0.01, ha="left", weight="bold")
    return figure


def _norm(values: np.ndarray, what: str) -> Normalize:
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    if what == "loss" and low > 0 and high > 20 * low:
        # On a linear scale one bad alignment would flatten all the others.
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1e-6)


def _draw(
    axes: Axes, weights: np.ndarray, values: np.ndarray, norm: Normalize, colours: str
) -> None:
    points = weights @ _CORNERS
    known = np.isfinite(values)
    if known.sum() >= 3:
        steps = np.linspace(0, 1, _LEVELS + 1)
        levels = np.asarray(norm.inverse(steps), dtype=float)
        x, y = points[known].T
        axes.tricontourf(x, y, values[known], levels=levels, norm=norm, cmap=colours, extend="both")
    axes.plot(*points.T, ".", color="white", ms=1.5, alpha=0.6)
    axes.plot(*np.vstack([_CORNERS, _CORNERS[:1]]).T, color="black", lw=0.9)
    centre = _CORNERS.mean(0)
    for corner, label in zip(_CORNERS, "ABC", strict=True):
        x, y = corner + 0.16 * (corner - centre)
        axes.text(x, y, label, ha="center", va="center")
    axes.set_xlim(-0.14, 1.14)
    axes.set_ylim(-0.14, 1.02)
    axes.set_aspect("equal")
