"""Accuracy against the number of networks that were merged."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from lightning_merge.plots.figure import Figures, Stored, figure, pool_sizes
from lightning_merge.plots.legends import legend_below
from lightning_merge.plots.methods import spread
from lightning_merge.plots.style import looks, style
from lightning_merge.plots.zoomed_axis import zoom_accuracy

# Of the distance between two numbers of networks.
_WIDTH = 0.3


@figure(
    "pools",
    lacking="holds no table: give the results.json of compare or study",
    needs="--pool_sizes",
)
def pools(stored: Stored) -> Figures:
    """Accuracy against the number of networks."""
    summary = stored.summary
    if not summary or (stored.in_report and len(pool_sizes(summary)) < 2):
        return {}
    return {"pools": plot_pools(summary, stored.heading("by number of networks"))}


def plot_pools(summary: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draws accuracy against the number of ingredients, a line for each method.

    Args:
        summary: Rows with `method`, `kind`, `accuracy`, `accuracy_sd` and `pool_size`, perhaps
            `accuracy_low` and `accuracy_high`; those without a size (single ingredients) are left
            out.
        title: The figure's heading.

    Returns:
        The figure: merges solid, ensembles dashed, the ingredients' average dotted, side by side;
        bars of one standard deviation over seeds, or with one seed the 95% intervals over test
        examples.
    """
    rows = [row for row in summary if row.get("pool_size") and row.get("accuracy") is not None]
    with style():
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        sizes = sorted({row["pool_size"] for row in rows})
        gap = min((b - a for a, b in pairwise(sizes)), default=1)
        found = looks(rows)
        ends: list[float] = []
        for place, (method, look) in enumerate(found.items()):
            of = sorted((r for r in rows if r["method"] == method), key=lambda r: r["pool_size"])
            # Beside one another: equal accuracies would cover each other.
            shift = _WIDTH * gap * ((place + 0.5) / len(found) - 0.5)
            accuracy = [row["accuracy"] for row in of]
            low, high = zip(*(spread(row) for row in of), strict=True)
            at = [row["pool_size"] + shift for row in of]
            axes.plot(at, accuracy, label=method, **look)
            if any((*low, *high)):
                axes.errorbar(
                    at, accuracy, [low, high], fmt="none", ecolor=look["color"], elinewidth=0.9
                )
            ends += [value - below for value, below in zip(accuracy, low, strict=True)]
            ends += [value + above for value, above in zip(accuracy, high, strict=True)]
        axes.set_xticks(sizes)
        axes.set_xlabel("networks in the pool")
        axes.set_ylabel("test accuracy")
        zoom_accuracy(axes, ends)
        axes.set_title(title or "Merges and ensembles by number of networks")
        legend_below(figure, axes, 3, handlelength=2.8)
    return figure
