"""Data sets as networks see them, in two dimensions (Quality and Diversity, Fig. 1)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from lightning_merge.plots.figure import network_figure
from lightning_merge.plots.style import CYCLE, GREY, MARKERS, style

Points = Mapping[str, NDArray[np.float64]]

# Drawn set by set, the last one would cover all others.
_ROUNDS = 20
_COLOURS = (*(colour for colour in CYCLE if colour != GREY), "#000000", GREY)


@network_figure("embedding", paper="Quality and Diversity Both Matters When Merging Models")
def plot_embedding(
    panels: Mapping[str, Points],
    title: str = "",
    caption: str = "",
    explained: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Draws a point for each image, a panel for each network.

    Args:
        panels: Coordinates `(N, 2)` by network, then by data set. A set has the same colour and
            marker in all panels, and the sets are drawn in mixed order, so that none covers
            another.
        title: The figure's heading.
        caption: Text under the figure.
        explained: By network, the fractions of the variance along the two axes, if they are
            principal components.
    """
    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    rows = -(-len(panels) // (3 if len(panels) <= 6 else 4))
    columns = -(-len(panels) // rows)
    width = max(5.4, 3.4 * columns)
    side = width / columns
    # Equally many in each line of the legend, rather than one left over in the last.
    lines = -(-len(names) // max(1, int(width / 1.4)))
    with style():
        size = (width, rows * (side + 0.15) + 0.75 + 0.21 * lines)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (network, points) in zip(grid, panels.items(), strict=False):
            _draw(axes, points, names, side)
            if len(panels) > 1:
                axes.set_title(network, weight="normal", fontsize=9)
            _label(axes, (explained or {}).get(network))
        legend = figure.legend(
            handles=_handles(names),
            loc="outside lower left",
            ncols=-(-len(names) // lines),
            handletextpad=0.2,
            columnspacing=1.4,
            fontsize=8.5,
            alignment="left",
            title=caption or None,
            title_fontsize=8,
        )
        legend.get_title().set_color("#444444")
        figure.suptitle(title or "Representations", x=0.01, ha="left", weight="bold")
    return figure


def _draw(axes: Axes, points: Points, names: list[str], side: float) -> None:
    # About the same amount of ink for any number of points.
    size = float(np.clip(1100 * side**2 / sum(map(len, points.values())), 5, 30))
    for start in range(_ROUNDS):
        for name, own in points.items():
            part = own[start::_ROUNDS]
            if len(part):
                x, y = part.T
                axes.scatter(
                    x, y, s=size, alpha=0.8, linewidths=0.25, edgecolors="white", gid=name,
                    **_look(names.index(name)),
                )  # fmt: skip


def _label(axes: Axes, explained: tuple[float, float] | None) -> None:
    axes.set_box_aspect(1)
    axes.margins(0.04)
    if explained is None:
        # The coordinates of t-SNE have no unit and no direction.
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["top", "right"]].set_visible(True)
        axes.spines[:].set_color("#BBBBBB")
        return
    axes.set_xlabel(f"1st component ({explained[0]:.0%} of the variance)")
    axes.set_ylabel(f"2nd component ({explained[1]:.0%})")


def _look(index: int) -> dict[str, Any]:
    # Colours and markers repeat with different periods.
    colour, marker = _COLOURS[index % len(_COLOURS)], MARKERS[index % len(MARKERS)]
    return {"color": colour, "marker": marker}


def _handles(names: list[str]) -> list[Any]:
    return [
        Line2D([], [], ls="", markersize=6, label=name, **_look(index))
        for index, name in enumerate(names)
    ]
