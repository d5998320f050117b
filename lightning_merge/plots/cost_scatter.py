"""Accuracy against what a network costs: to run, and to make."""

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_merge.plots.figure import SIZE, Figures, Stored, figure, pool_sizes
from lightning_merge.plots.methods import KIND_COLOURS, spread
from lightning_merge.plots.style import GREEN, GREY, style
from lightning_merge.plots.zoomed_axis import zoom_accuracy

Row = Mapping[str, Any]

_MARKERS = {"ingredient": "D", "merge": "o", "ensemble": "s"}
# More names would not fit beside one another.
_NAMED = 16


@figure("cost", lacking="holds no table: give the results.json of compare or study")
def cost(stored: Stored) -> Figures:
    """Accuracy against the cost of a prediction, and against the time that it took to make."""
    summary = [row for row in stored.summary if row.get("accuracy") is not None]
    sizes = [size for size in pool_sizes(summary) if size is not None]
    rows = [row for row in summary if len(sizes) < 2 or row.get(SIZE) in (max(sizes), None)]
    made = [row for row in rows if row["kind"] != "ingredient"]
    if not made:
        return {}
    if len(sizes) > 1 and stored.title:
        return {"cost": plot_cost(rows, f"{stored.title}, {max(sizes)} networks")}
    return {"cost": plot_cost(rows, stored.title)}


def plot_cost(summary: Sequence[Row], title: str = "") -> Figure:
    """Draws accuracy against the cost of one prediction, and against the seconds of making.

    Rows have `method`, `kind`, `accuracy`, `flops`, `parameters` and `seconds`, perhaps
    `accuracy_sd`, `accuracy_low`, `accuracy_high` and `mark`. On the left are multiples of the
    cheapest network's operations (parameters, where operations are not known), on the right
    seconds, left out where none are known. The ingredients are one row, their average, if it is
    among the rows. Bars are those of `methods`; rings mark what held-out data chose.
    """
    averages = [row for row in summary if row["kind"] == "ingredient" and row.get(SIZE)]
    rows = [row for row in summary if row["kind"] != "ingredient"] + list(averages)
    rows += [row for row in summary if row.get("mark") and row not in rows]
    counted = all(row.get("flops") is not None for row in rows)
    costs: list[float] = [row["flops" if counted else "parameters"] for row in rows]
    cheapest = min((value for value in costs if value), default=1)
    times = [(row, row["seconds"]) for row in rows if row.get("seconds")]
    with style():
        wide = len(times) > 1
        figure = Figure(figsize=(8.6 if wide else 5.2, 4.4), layout="constrained")
        panels = figure.subplots(1, 1 + wide, squeeze=False, sharey=True)[0]
        panels[0].set_ylabel("test accuracy")
        lowest = [row["accuracy"] - spread(row)[0] for row in rows]
        highest = [row["accuracy"] + spread(row)[1] for row in rows]
        zoom_accuracy(panels[0], [*lowest, *highest])
        running = [(row, value / cheapest) for row, value in zip(rows, costs, strict=True)]
        _draw(panels[0], running, lambda value: f"{value:.3g}×")
        panels[0].set_xlabel("cost of a prediction (1×: that of one network)")
        if wide:
            panels[1].set_xscale("log")
            _draw(panels[1], times, lambda value: f"{value:.3g} s")
            panels[1].xaxis.set_major_formatter("{x:g}")
            panels[1].set_xlabel("seconds to make it (log scale)")
        figure.suptitle(title or "Accuracy against cost", x=0.01, ha="left", weight="bold")
    return figure


def _draw(axes: Axes, points: Sequence[tuple[Row, float]], tick: Callable[[float], str]) -> None:
    for row, value in points:
        colour = KIND_COLOURS.get(row["kind"], GREY)
        below, above = spread(row)
        if row.get("mark"):
            axes.plot(value, row["accuracy"], "o", ms=11, mfc="none", mec=GREEN, mew=1.8)
        axes.errorbar(
            value,
            row["accuracy"],
            yerr=[[below], [above]] if below or above else None,
            fmt=_MARKERS.get(row["kind"], "o"),
            color=colour,
            mfc="white" if row["kind"] == "ensemble" else colour,
            elinewidth=0.9,
        )
    low, high = min(value for _, value in points), max(value for _, value in points)
    # Room on the right for names.
    if axes.get_xscale() == "log":
        axes.set_xlim(low / (high / low or 1) ** 0.08 / 1.1, high * (high / low) ** 0.75 * 1.5)
    else:
        reach = high - low or 1.0
        axes.set_xlim(low - 0.12 * reach, high + 0.85 * reach)
        ticks = sorted({value for _, value in points})
        if len(ticks) <= 5:
            axes.set_xticks(ticks, [tick(value) for value in ticks])
    if len(points) <= _NAMED:
        _name(axes, points)


def _name(axes: Axes, points: Sequence[tuple[Row, float]]) -> None:
    """Names to the right of the points, moved apart where they would cover each other."""
    low, high = axes.get_ylim()
    least = 0.052 * (high - low)
    placed: list[tuple[float, float]] = []
    logarithmic = axes.get_xscale() == "log"
    ends = axes.get_xlim()

    def across(value: float) -> float:
        """Where it is between the ends of the axis, from 0 to 1."""
        if logarithmic:
            return log(value / ends[0]) / log(ends[1] / ends[0])
        return (value - ends[0]) / (ends[1] - ends[0])

    for row, value in sorted(points, key=lambda point: -point[0]["accuracy"]):
        y = row["accuracy"]
        # Names are about half an axis wide.
        while any(abs(across(value) - x) < 0.5 and abs(y - other) < least for x, other in placed):
            y -= least / 4
        placed.append((across(value), y))
        moved = abs(y - row["accuracy"]) > least / 3
        axes.annotate(
            row["method"],
            (value, row["accuracy"]),
            xytext=(across(value) + 0.035, (y - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            fontsize=7.5,
            arrowprops={
                "arrowstyle": "-",
                "lw": 0.5,
                "color": GREY,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            }
            if moved
            else None,
        )
