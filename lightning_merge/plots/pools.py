"""Accuracy against the number of networks that were merged."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lightning_merge.plots.figure import Figures, Stored, figure, pool_sizes
from lightning_merge.plots.style import looks, style


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
        summary: Rows with `method`, `kind`, `accuracy`, `accuracy_sd` and `pool_size`; those
            without a size (single ingredients) are left out.
        title: The figure's heading.

    Returns:
        The figure: merges solid, ensembles dashed, the ingredients' average dotted; a band of
        one standard deviation where there are several seeds.
    """
    rows = [row for row in summary if row.get("pool_size") and row.get("accuracy") is not None]
    with style():
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        for method, look in looks(rows).items():
            of = sorted((r for r in rows if r["method"] == method), key=lambda r: r["pool_size"])
            sizes = [row["pool_size"] for row in of]
            accuracy = [row["accuracy"] for row in of]
            axes.plot(sizes, accuracy, label=method, **look)
            if all(row.get("accuracy_sd") is not None for row in of):
                low = [row["accuracy"] - row["accuracy_sd"] for row in of]
                high = [row["accuracy"] + row["accuracy_sd"] for row in of]
                axes.fill_between(sizes, low, high, color=look["color"], alpha=0.12, lw=0)
        axes.set_xticks(sorted({row["pool_size"] for row in rows}))
        axes.set_xlabel("networks in the pool")
        axes.set_ylabel("test accuracy")
        axes.set_title(title or "Merges and ensembles by number of networks")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=2.8)
    return figure
