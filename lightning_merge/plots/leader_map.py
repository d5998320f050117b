"""How far each way of merging is above or below its networks, by situation."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lightning_merge.plots.style import style

# Points of per cent from which on the colour says no more: a merge that fails is off the scale.
_FULL = 20.0


def plot_leaders(
    merges: Sequence[str],
    situations: Sequence[str],
    over: Mapping[tuple[str, str], float | None],
    title: str = "",
) -> Figure:
    """Draws a map of merges, from the top, and situations, from the left.

    `over` has, for a merge and a situation, its accuracy less that of its networks, a fraction of
    1; None, or no entry, where it is not known. Numbers are percentage points, blue above the
    networks and orange below.
    """
    points = np.array(
        [[100 * (over.get((merge, one)) or 0.0) for one in situations] for merge in merges]
    )
    with style():
        names = 0.3 + 0.062 * max(map(len, merges), default=0)
        size = (names + 0.78 * len(situations), 1.4 + 0.3 * len(merges))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        # The root shows a point beside a difference of seventy.
        shades = np.sign(points) * np.sqrt(np.abs(points) / _FULL)
        axes.imshow(shades, cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(points):
            if over.get((merges[row], situations[column])) is None:
                continue
            # Adding zero takes the sign off a negative zero.
            text = f"{round(value, 1) + 0.0:+.1f}" if abs(value) < 9.95 else f"{value:+.0f}"
            colour = "white" if abs(value) > _FULL / 3 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        columns = [one.replace(":", "").replace(" ", "\n") for one in situations]
        axes.set_xticks(range(len(situations)), columns)
        axes.tick_params(axis="x", labelsize=7.5, length=0, top=True, labeltop=True, bottom=False)
        axes.tick_params(axis="x", labelbottom=False)
        axes.set_yticks(range(len(merges)), merges)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        figure.suptitle(title, x=0.01, ha="left", weight="bold", size=10)
    return figure
