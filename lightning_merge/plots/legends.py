"""Legends below the panels of a figure."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

# Inches; what a line of a legend takes in the font of `style`.
_LINE = 0.2


def legend_below(figure: Figure, axes: Axes, most: int, **settings: Any) -> Legend:
    """Adds a panel's legend below all panels, in as many columns as the figure is wide enough for.

    A legend wider than its figure would widen the saved file, with empty space beside the panels.
    The figure, of a constrained layout, becomes higher by each line that fewer columns than `most`
    need.
    """
    handles, labels = axes.get_legend_handles_labels()
    for columns in range(min(most, max(1, len(labels))), 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, **settings
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    added = -(-len(labels) // columns) - -(-len(labels) // most)
    figure.set_figheight(figure.get_figheight() + _LINE * added)
    return legend
