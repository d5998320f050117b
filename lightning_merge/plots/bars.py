"""Bars of every method's accuracy, grouped by architecture (Rethinking, Fig. 3 and 18 to 21)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lightning_merge.plots.figure import Figures, Stored, figure
from lightning_merge.plots.legends import legend_below
from lightning_merge.plots.methods import spread
from lightning_merge.plots.style import looks, style

Row = Mapping[str, Any]

# Up to this many bars in a panel have their numbers above them.
_WRITTEN = 60
# Of merges and of ensembles; where there are more of them than colours, the next one.
_HATCHES = (("", "....", "xxxx"), ("/////", "\\\\\\\\\\", "-----"))


@figure(
    "bars",
    lacking="holds no table: give the results.json of compare or study",
    several=True,
    in_report=False,
    paper="Wang et al., Rethinking Weight-Averaged Model-merging",
)
def bars(stored: Stored) -> Figures:
    """The accuracies of several runs (architectures) as groups of bars."""
    tables = stored.tables
    return {"bars": plot_bars(tables, stored.title)} if all(tables.values()) else {}


def plot_bars(tables: Mapping[str, Sequence[Row]], title: str = "") -> Figure:
    """Draws a group of bars for each table, a bar for each method.

    Args:
        tables: Summaries by their subject (an architecture, a data set); rows with
            `method`, `kind`, `accuracy`, `accuracy_sd` and `pool_size`. Single ingredients are
            left out, their average is kept.
        title: The figure's heading.

    Returns:
        The figure: a panel for each number of networks, one below the other; merges are
        filled, ensembles hatched.
    """
    average = {"ingredient": "Ingredients' average"}
    kept = {
        label: [
            row
            for row in summary
            if row.get("accuracy") is not None
            and row["method"] == average.get(row["kind"], row["method"])
        ]
        for label, summary in tables.items()
    }
    rows = [row for summary in kept.values() for row in summary]
    look = looks(rows)
    sizes = sorted({row.get("pool_size") for row in rows}, key=lambda size: size or 0)
    labels = list(kept)
    width = 0.86 / len(look)
    highest = max((row["accuracy"] + spread(row)[1] for row in rows), default=1.0)
    top = next(end for end in (0.2, 0.4, 0.6, 1.0) if highest <= end or end == 1)
    with style():
        size = (max(7.6, 1.6 + 0.16 * len(look) * len(labels)), 1.3 + 1.7 * len(sizes))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(sizes), 1, sharex=True, squeeze=False)[:, 0]
        for axes, count in zip(panels, sizes, strict=True):
            alike: Counter[tuple[str, bool]] = Counter()
            for place, (method, one) in enumerate(look.items()):
                fill = (one["color"], one.get("ls") == "--")
                hatch = _HATCHES[fill[1]][alike[fill] % 3]
                alike[fill] += 1
                found = {
                    label: row
                    for label, summary in kept.items()
                    for row in summary
                    if row["method"] == method and row.get("pool_size") == count
                }
                _draw(axes, found, labels, place, width, method, (*fill, hatch))
            # Room above the highest bar for its number.
            axes.set_ylim(0, 1.2 * top)
            axes.set_yticks([top * part / 4 for part in range(5)])
            axes.set_ylabel("test accuracy")
            axes.grid(axis="x", visible=False)
            if count:
                axes.set_title(f"{count} networks", weight="normal")
        turned = {"rotation": 35, "ha": "right"} if len(labels) > 6 else {}
        panels[-1].set_xticks(range(len(labels)), labels, **turned)
        panels[-1].set_xlim(-0.55, len(labels) - 0.45)
        legend_below(figure, panels[0], 4, handlelength=1.6)
        figure.suptitle(title or "Merges and ensembles", x=0.01, ha="left", weight="bold")
    return figure


def _draw(
    axes: Any,
    found: Mapping[str, Row],
    labels: Sequence[str],
    place: int,
    width: float,
    method: str,
    fill: tuple[str, bool, str],
) -> None:
    at = [labels.index(label) - 0.43 + (place + 0.5) * width for label in found]
    heights = [row["accuracy"] for row in found.values()]
    spreads = [spread(row) for row in found.values()]
    color, is_ensemble, hatch = fill
    axes.bar(
        at,
        heights,
        width * 0.9,
        yerr=list(zip(*spreads, strict=True)) if any(map(any, spreads)) else None,
        error_kw={"lw": 0.8},
        color="white" if is_ensemble else color,
        edgecolor="white" if hatch and not is_ensemble else color,
        hatch=hatch,
        lw=0.8,
        label=method,
    )
    if len(labels) * len(found) <= _WRITTEN:
        for x, height, (_, above) in zip(at, heights, spreads, strict=True):
            text = f"{height:.3f}"
            y = height + above + 0.025
            axes.text(x, y, text, rotation=90, ha="center", va="bottom", fontsize=6.5)
