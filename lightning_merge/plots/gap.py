"""The accuracy gap between the ensemble and each merge (Rethinking, Fig. 8a and 22)."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from lightning_merge.errors import ConfigError
from lightning_merge.plots.figure import Figures, Stored, figure, pool_sizes
from lightning_merge.plots.legends import legend_below
from lightning_merge.plots.style import MARKERS, looks, same_curves, style

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]
"""Summaries by what they are of, an architecture for example."""


@figure(
    "gap",
    lacking="holds no table: give the results.json of compare or study",
    several=True,
    paper="Wang et al., Rethinking Weight-Averaged Model-merging",
    needs="an ensemble among the recipes",
)
def gap(stored: Stored) -> Figures:
    """By how much merges fall short of the ensemble, of one run or several."""
    tables = stored.tables
    if not all(tables.values()):
        return {}
    ensembles = [ensemble_of(one) for one in stored.results]
    if stored.in_report:
        made = any(row["kind"] == "merge" for row in stored.summary)
        if ensembles[0] is None or not made or len(pool_sizes(stored.summary)) < 2:
            return {}
    for label, ensemble in zip(stored.labels, ensembles, strict=True):
        if ensemble is None or ensemble != ensembles[0]:
            other = "" if ensemble is None else f" of the name '{ensembles[0]}'"
            raise ConfigError(
                f"{label or 'the run'} holds no ensemble{other} for merges to be held against: "
                "give results whose recipes have the same LogitsEnsemble"
            )
    ensemble = str(ensembles[0])
    if not any(_gaps(table, ensemble) for table in tables.values()):
        return {}
    return {"gap": plot_gap(tables, ensemble, stored.heading("gap to the ensemble"))}


def ensemble_of(results: Mapping[str, Any]) -> str | None:
    """The method that merges are compared with: the ensemble that a run names, else its first."""
    named: str | None = results.get("ensemble")
    ensembles = [row["method"] for row in results["summary"] if row["kind"] == "ensemble"]
    return named or (ensembles[0] if ensembles else None)


def plot_gap(tables: Tables, ensemble: str, title: str = "") -> Figure:
    """Draws the ensemble's accuracy minus each merge's.

    Args:
        tables: Summaries; rows with `method`, `kind`, `accuracy` and `pool_size`.
        ensemble: The method that merges are compared with.
        title: The figure's heading.

    Returns:
        The figure. For one table with several numbers of networks: the gap against that number, a
        line for each merge. Otherwise: a panel for each merge with the gap of every table, a line
        for each number of networks. Gaps are in percentage points.
    """
    gaps = {label: _gaps(summary, ensemble) for label, summary in tables.items()}
    merges = list(dict.fromkeys(name for gap in gaps.values() for name, _ in gap))
    sizes = sorted({size for gap in gaps.values() for _, size in gap}, key=lambda size: size or 0)
    with style():
        if len(tables) == 1 and len(sizes) > 1:
            (summary,), (gap,) = tables.values(), gaps.values()
            figure = _by_size(gap, merges, sizes, looks(summary))
        else:
            figure = _by_table(gaps, merges, sizes)
        for axes in figure.axes:
            axes.set_ylabel(f"{ensemble} minus merge\n(percentage points)")
        figure.suptitle(title or "The gap to the ensemble", x=0.01, ha="left", weight="bold")
    return figure


def _gaps(summary: Sequence[Row], ensemble: str) -> dict[tuple[str, int | None], float]:
    known = [row for row in summary if row.get("accuracy") is not None]
    bounds = {row.get("pool_size"): row["accuracy"] for row in known if row["method"] == ensemble}
    return {
        (row["method"], row.get("pool_size")): 100
        * (bounds[row.get("pool_size")] - row["accuracy"])
        for row in known
        if row["kind"] == "merge" and row.get("pool_size") in bounds
    }


def _by_size(
    gap: Mapping[tuple[str, int | None], float],
    merges: Sequence[str],
    sizes: Sequence[int | None],
    look: Mapping[str, Mapping[str, Any]],
) -> Figure:
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    curves = {
        merge: tuple(gap.get((merge, size), float("nan")) for size in sizes if size)
        for merge in merges
    }
    for label, merge in same_curves(curves).items():
        found = {size: gap[merge, size] for size in sizes if size and (merge, size) in gap}
        axes.plot(list(found), list(found.values()), label=label, **look[merge])
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks([size for size in sizes if size])
    axes.set_xlabel("networks in the pool")
    axes.legend()
    return figure


def _by_table(
    gaps: Mapping[str, Mapping[tuple[str, int | None], float]],
    merges: Sequence[str],
    sizes: Sequence[int | None],
) -> Figure:
    labels = list(gaps)
    # From light to dark as more networks are merged; distinguishable in grey as well.
    colours = mpl.colormaps["viridis_r"]([0.15 + 0.8 * i / max(len(sizes), 1) for i in range(9)])
    width = max(3.4, 1.4 + 0.45 * len(labels))
    figure = Figure(figsize=(max(5.0, width), 1.4 + 2.5 * len(merges)), layout="constrained")
    panels = figure.subplots(len(merges), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, merge in zip(panels, merges, strict=True):
        for index, size in enumerate(sizes):
            heights = [gaps[label].get((merge, size), float("nan")) for label in labels]
            axes.plot(
                range(len(labels)),
                heights,
                color=colours[index % len(colours)],
                marker=MARKERS[index % len(MARKERS)],
                ls="-" if len(labels) > 1 else "",
                label=f"{size} networks" if size else None,
            )
        axes.axhline(0, color="black", lw=0.8)
        axes.set_title(merge, weight="normal")
    panels[-1].set_xticks(range(len(labels)), labels, rotation=35, ha="right")
    panels[-1].set_xlim(-0.5, len(labels) - 0.5)
    if any(sizes):
        # Beside the panels it would overlap the heading.
        legend_below(figure, panels[0], 3)
    return figure
