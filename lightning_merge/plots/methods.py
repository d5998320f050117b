"""The accuracy of all methods side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lightning_merge.plots.figure import SIZE, Figures, Stored, figure, pool_sizes
from lightning_merge.plots.style import BLUE, GREY, ORANGE, style

_COLOURS = {"ingredient": GREY, "merge": BLUE, "ensemble": ORANGE}


@figure("methods", lacking="holds no table: give the results.json of compare or study")
def methods(stored: Stored) -> Figures:
    """The accuracy of every method beside the others."""
    summary = stored.summary
    if not summary:
        return {}
    sizes = [size for size in pool_sizes(summary) if size is not None]
    if not stored.in_report or len(sizes) < 2:
        return {"methods": plot_methods(summary, stored.title)}
    of_all = [row for row in summary if row.get(SIZE) in (max(sizes), None)]
    return {"methods": plot_methods(of_all, f"{stored.title}, {max(sizes)} networks")}


def plot_methods(summary: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draws a dot for each method's accuracy, with one standard deviation over seeds.

    Args:
        summary: Rows with `method`, `kind`, `accuracy`, `accuracy_sd` and `parameters`.
        title: The figure's heading.

    Returns:
        The figure; ingredients in grey, merges in blue, ensembles in orange. None is marked as
        the best: these are test accuracies, which must not be used to choose a method.
    """
    rows = [row for row in summary if row.get("accuracy") is not None]
    with style():
        figure = Figure(figsize=(6.8, 0.9 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for position, row in enumerate(reversed(rows)):
            colour = _COLOURS.get(row["kind"], GREY)
            axes.plot([0, row["accuracy"]], [position] * 2, color=colour, lw=1.2, alpha=0.5)
            axes.errorbar(
                row["accuracy"],
                position,
                xerr=row.get("accuracy_sd") or None,
                fmt="o",
                color=colour,
                capsize=2.5,
            )
            right = row["accuracy"] + (row.get("accuracy_sd") or 0.0)
            axes.text(right + 0.015, position, f"{row['accuracy']:.3f}", va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [row["method"] for row in reversed(rows)])
        axes.set_xlim(0, 1.12)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("test accuracy")
        axes.set_title(title or "Merges against their ingredients")
    return figure
