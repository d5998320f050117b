"""The accuracy of all methods side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lightning_merge.plots.figure import SIZE, Figures, Stored, figure, pool_sizes
from lightning_merge.plots.style import BLUE, GREEN, GREY, ORANGE, style
from lightning_merge.plots.zoomed_axis import zoom_accuracy

KIND_COLOURS = {"ingredient": GREY, "merge": BLUE, "ensemble": ORANGE}


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

    With one seed the bars are the 95% intervals over test examples.

    Args:
        summary: Rows with `method`, `kind`, `accuracy`, `accuracy_sd` and `parameters`, perhaps
            `accuracy_low`, `accuracy_high`, `majority`, and `mark`.
        title: The figure's heading.

    Returns:
        The figure; ingredients in grey, merges in blue, ensembles in orange; green rings where
        `mark` says `best` or `tied`, which held-out data determine; a dotted line where always
        giving the most frequent class lies, if the axis goes so far. Nothing is marked by its test
        accuracy, which must not be used to choose a method.
    """
    rows = [row for row in summary if row.get("accuracy") is not None]
    with style():
        figure = Figure(figsize=(6.8, 0.9 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        lowest = [row["accuracy"] - spread(row)[0] for row in rows]
        guessed = next((row["majority"] for row in rows if row.get("majority") is not None), None)
        shown = guessed is not None and guessed >= min(0.5, *lowest)
        axes.set_xlabel(_label(rows, shown))
        highest = [row["accuracy"] + spread(row)[1] for row in rows]
        start = zoom_accuracy(axes, [*lowest, *highest, guessed if shown else None], "x")
        for position, row in enumerate(reversed(rows)):
            colour = KIND_COLOURS.get(row["kind"], GREY)
            axes.plot([start, row["accuracy"]], [position] * 2, color=colour, lw=1.2, alpha=0.5)
            below, above = spread(row)
            if row.get("mark"):
                (ring,) = axes.plot(row["accuracy"], position, "o", ms=11, mfc="none", mec=GREEN)
                ring.set(mew=1.8, clip_on=False)
            axes.errorbar(
                row["accuracy"],
                position,
                xerr=[[below], [above]] if below or above else None,
                fmt="o",
                color=colour,
                capsize=2.5,
                clip_on=False,
            )
            text = f"{row['accuracy']:.3f}" + (f", {row['mark']}" if row.get("mark") else "")
            beside = axes.get_yaxis_transform()
            axes.text(1.025, position, text, transform=beside, va="center", fontsize=8)
        if guessed is not None and shown:
            axes.axvline(guessed, color="black", ls=":", lw=0.8)
        axes.set_yticks(range(len(rows)), _names(rows)[::-1])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_title(title or "Merges against their ingredients")
    return figure


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The methods, with how many networks each was made of where that differs."""
    several = len(pool_sizes(rows)) > 1
    return [
        f"{row['method']} of {row[SIZE]}" if several and row.get(SIZE) else row["method"]
        for row in rows
    ]


def spread(row: Mapping[str, Any]) -> tuple[float, float]:
    """How far a bar goes down and up from an accuracy: its deviation, else its 95% interval."""
    accuracy, deviation = row["accuracy"], row.get("accuracy_sd")
    if deviation is not None:
        return deviation, deviation
    low, high = row.get("accuracy_low"), row.get("accuracy_high")
    if low is None or high is None:
        return 0.0, 0.0
    return max(0.0, accuracy - low), max(0.0, high - accuracy)


def _label(rows: Sequence[Mapping[str, Any]], guessing: bool) -> str:
    parts = []
    if any(row.get("accuracy_sd") is not None for row in rows):
        parts.append("bars: standard deviation over seeds")
    elif any(row.get("accuracy_low") is not None for row in rows):
        parts.append("bars: 95% over test examples")
    if any(row.get("mark") for row in rows):
        parts.append("ring: best on held-out data")
    if guessing:
        parts.append("dotted: guessing")
    return "; ".join(["test accuracy", *parts])
