"""Loss and accuracy along the interpolation path from B to A."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lightning_merge.plots.figure import Figures, Stored, figure
from lightning_merge.plots.legends import legend_below
from lightning_merge.plots.style import CYCLE, marker, same_curves, style
from lightning_merge.plots.triangle import plot_triangle
from lightning_merge.plots.zoomed_axis import zoom_accuracy


@figure(
    "barrier",
    lacking="holds no barrier: run compare or study with --barrier 11 (or, for three checkpoints, "
    "--triangle 7)",
    paper="Frankle et al. 2020",
    needs="--barrier or --triangle",
)
def barrier(stored: Stored) -> Figures:
    """Loss and accuracy along interpolation paths, and over triangles beside them."""
    lines, triangles = stored.first.get("lines"), stored.first.get("triangles")
    drawn: Figures = {}
    if lines:
        drawn["barrier"] = plot_barrier(lines, stored.title)
    if triangles:
        drawn["triangle"] = plot_triangle(triangles, stored.title)
    return drawn


_RECALIBRATED = ("-", (0, (7, 1.5, 1.5, 1.5)), (0, (1.5, 1.2)))


def plot_barrier(lines: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draws test loss and accuracy against alpha.

    Args:
        lines: Each with `name`, `alpha`, `loss` and `accuracy` (lists of equal length). Lines
            with the same name, from several seeds, become a mean and a band of one standard
            deviation; lines that coincide become one with the names of all. Names that are equal
            up to ` + ` share a colour: an alignment without a recalibration is drawn dashed, with
            the first one solid, with further ones dash-dotted and dotted, and smaller markers.
        title: The figure's heading.

    Returns:
        The figure: loss on the left, accuracy on the right.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        by_name[line["name"]].append(line)
    alignments = list(dict.fromkeys(name.partition(" + ")[0] for name in by_name))
    recalibrations = list(dict.fromkeys(name.partition(" + ")[2] for name in by_name))
    recalibrations = [name for name in recalibrations if name]
    with style():
        columns = min(len(by_name), 4)
        rows = -(-len(by_name) // columns)
        figure = Figure(figsize=(8.2, 3.0 + 0.2 * rows), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        values = {
            name: [
                value
                for line in repeated
                for what in ("loss", "accuracy")
                for value in np.asarray(line[what], dtype=float)
            ]
            for name, repeated in by_name.items()
        }
        for label, name in same_curves(values).items():
            repeated = by_name[name]
            look = _look(name, alignments, recalibrations)
            for axes, what in ((loss, "loss"), (accuracy, "accuracy")):
                alpha = np.asarray(repeated[0]["alpha"])
                # A loss that is not finite is stored as null: a gap.
                drawn = np.asarray([line[what] for line in repeated], dtype=float)
                axes.plot(alpha, drawn.mean(0), label=label, **look)
                if len(drawn) > 1:
                    mean, deviation = drawn.mean(0), drawn.std(0, ddof=1)
                    axes.fill_between(
                        alpha, mean - deviation, mean + deviation, color=look["color"], alpha=0.15
                    )
        loss.set_ylabel("test loss")
        if _is_outlying([line["loss"] for line in lines]):
            # On a linear scale one line would flatten all the others.
            loss.set_yscale("log")
            loss.set_ylabel("test loss (log scale)")
        accuracy.set_ylabel("test accuracy")
        zoom_accuracy(accuracy, [value for line in lines for value in line["accuracy"]])
        for axes in (loss, accuracy):
            axes.set_xlabel("α   (0: B,  1: A)")
        figure.get_layout_engine().set(wspace=0.05)  # type: ignore[union-attr, call-arg]
        heading = title or "Along the line from B to A"
        figure.suptitle(heading, x=0.01, ha="left", weight="bold")
        legend = legend_below(figure, loss, columns, handlelength=2.8)
        for handle in legend.get_lines():
            if handle.get_markerfacecolor() == "white":
                handle.set_linestyle((0, (3, 2)))
    return figure


def _is_outlying(losses: Sequence[Sequence[float | None]]) -> bool:
    values = np.asarray(losses, dtype=float)
    highest = np.nanmax(values, axis=1, initial=0.0)
    return bool(np.nanmin(values, initial=1.0) > 0 and highest.max() > 8 * np.median(highest))


def _look(name: str, alignments: Sequence[str], recalibrations: Sequence[str]) -> dict[str, Any]:
    alignment, _, recalibration = name.partition(" + ")
    index = alignments.index(alignment)
    look: dict[str, Any] = {
        "color": CYCLE[index % len(CYCLE)],
        "marker": marker(index),
    }
    if recalibration:
        number = recalibrations.index(recalibration) % len(_RECALIBRATED)
        return {**look, "ls": _RECALIBRATED[number], "markersize": 4.5 - number}
    # Where dashed lines coincide, each shows in the gaps of the others.
    return {**look, "ls": (4 * index, (4, 4)), "markerfacecolor": "white"}
