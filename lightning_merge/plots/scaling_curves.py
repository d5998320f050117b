"""Weight scaling: soups and ensembles of scaled networks (Rethinking, Fig. 4, 8b, 8c)."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lightning_merge.plots.figure import Figures, Stored, figure
from lightning_merge.plots.legends import legend_below
from lightning_merge.plots.style import BLUE, MARKERS, looks, style
from lightning_merge.plots.zoomed_axis import zoom_accuracy

Curve = Mapping[str, Any]
_COLUMNS = 3
_PANELS = 6


@figure(
    "magnitude",
    lacking="holds no magnitudes: run compare or study with --magnitudes '[0.5, 1, 2]'",
    paper="Wang et al., Rethinking Weight-Averaged Model-merging",
    needs="--magnitudes",
)
def magnitude(stored: Stored) -> Figures:
    """Accuracy against the factor of all weights; soup against ensemble where there are both."""
    curves = stored.first.get("magnitudes")
    if not curves:
        return {}

    def heading(what: str) -> str:
        return f"{stored.title}: {what}" if stored.title else ""

    drawn = {"magnitude": plot_magnitude(curves, heading("accuracy by weight magnitude"))}
    if has_pair(curves):
        what = heading("soup minus ensemble by weight magnitude")
        drawn["magnitude-gap"] = plot_magnitude_gap(curves, what)
    # A soup whose tensors have shares of their own is stored without its batches.
    batched = [curve for curve in curves if curve.get("by_batch")]
    if has_pair(batched):
        what = heading("soup and ensemble, batch by batch")
        drawn["magnitude-scatter"] = plot_magnitude_scatter(batched, what)
    return drawn


def plot_magnitude(curves: Sequence[Curve], title: str = "") -> Figure:
    """Draws accuracy against the factor of the weights, a line for each method.

    Args:
        curves: Each with `name`, `kind`, `pool_size`, `factor` and `accuracy`; those of one name
            and size, from several seeds, become a mean and a band of one standard deviation.
        title: The figure's heading.

    Returns:
        The figure: a panel for each number of networks. Where 1 is among the factors, a thin
        line marks the ingredients' accuracy at it.
    """
    sizes = sorted({curve["pool_size"] for curve in curves})
    look = looks([{**curve, "method": curve["name"]} for curve in curves])
    with style():
        figure, panels = _panels(len(sizes), (3.3, 2.7))
        shown: list[float] = []
        for axes, size in zip(panels, sizes, strict=False):
            for name, one in look.items():
                factor, mean, deviation = _mean(curves, name, size)
                axes.plot(mean, label=name, **one)
                shown += [*mean]
                if deviation is not None:
                    low, high = mean - deviation, mean + deviation
                    places = range(len(factor))
                    axes.fill_between(places, low, high, color=one["color"], alpha=0.12, lw=0)
                    shown += [*low, *high]
                if one.get("ls") == ":" and 1.0 in factor:
                    axes.axhline(mean[factor.index(1.0)], color=one["color"], lw=0.8)
            _factors(axes, factor)
            axes.set_title(f"{size} networks", weight="normal")
            axes.set_xlabel("weights multiplied by")
        panels[0].set_ylabel("test accuracy")
        zoom_accuracy(panels[0], shown)
        columns = 2 if len(sizes) == 1 else 4
        legend_below(figure, panels[0], columns, handlelength=2.8)
        figure.suptitle(title or "Accuracy by weight magnitude", x=0.01, ha="left", weight="bold")
    return figure


def plot_magnitude_gap(curves: Sequence[Curve], title: str = "") -> Figure:
    """Draws the soup's accuracy minus that of the ensemble of logits, against the factor.

    Args:
        curves: As for `plot_magnitude`, with `aggregate`: the first `Average` and the first
            `LogitsEnsemble` are compared.
        title: The figure's heading.

    Returns:
        The figure: a line for each number of networks.
    """
    soup, ensemble = _pair(curves)
    sizes = sorted({curve["pool_size"] for curve in curves})
    with style():
        colours = mpl.colormaps["viridis_r"](np.linspace(0.15, 0.95, len(sizes)))
        figure = Figure(figsize=(5.6, 3.8), layout="constrained")
        axes = figure.subplots()
        for index, (size, colour) in enumerate(zip(sizes, colours, strict=True)):
            factor, mean, _ = _mean(curves, soup, size)
            gap = 100 * (mean - _mean(curves, ensemble, size)[1])
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(gap, color=colour, marker=marker, label=f"{size} networks")
        axes.axhline(0, color="black", lw=0.8)
        _factors(axes, factor)
        axes.set_xlabel("weights multiplied by")
        axes.set_ylabel(f"{soup} minus {ensemble}\n(percentage points)")
        axes.legend()
        axes.set_title(title or "Soup minus ensemble by weight magnitude")
    return figure


def plot_magnitude_scatter(curves: Sequence[Curve], title: str = "") -> Figure:
    """Draws the ensemble's accuracy against the soup's, a point for each batch of the test set.

    Args:
        curves: As for `plot_magnitude_gap`, with `by_batch`.
        title: The figure's heading.

    Returns:
        The figure, of the largest number of networks: a panel for each factor (six at most),
        with the line on which both are equal. Points that coincide are darker.
    """
    soup, ensemble = _pair(curves)
    size = max(curve["pool_size"] for curve in curves)
    of = [curve for curve in curves if curve["pool_size"] == size]
    factors = of[0]["factor"]
    order = np.argsort(factors)
    places = np.linspace(0, len(order) - 1, min(len(order), _PANELS)).round().astype(int)
    chosen = [int(order[place]) for place in places]
    points = {
        name: np.asarray([curve["by_batch"] for curve in of if curve["name"] == name])
        for name in (soup, ensemble)
    }
    shown = np.concatenate([values[:, chosen].ravel() for values in points.values()])
    margin = max(0.02, 0.05 * float(shown.max() - shown.min()))
    low, high = float(shown.min()) - margin, float(shown.max()) + margin
    with style():
        figure, panels = _panels(len(chosen), (2.3, 2.15), sharex=True)
        for axes, index in zip(panels, chosen, strict=False):
            x, y = (points[name][:, index].ravel() for name in (soup, ensemble))
            axes.axline((low, low), slope=1, color="black", lw=0.8)
            axes.plot(x, y, "o", color=BLUE, alpha=0.35, ms=4.5, mec="none")
            above = f"above: {np.mean(y > x):.0%}, below: {np.mean(y < x):.0%}"
            axes.text(0.03, 0.97, above, transform=axes.transAxes, va="top", fontsize=7)
            axes.set_title(f"× {factors[index]:g}", weight="normal")
            axes.set_xlim(low, high)
            axes.set_ylim(low, high)
            axes.set_aspect("equal")
        figure.supxlabel(f"{soup}: accuracy of a batch", fontsize=9)
        figure.supylabel(f"{ensemble}: accuracy of a batch", fontsize=9)
        heading = title or "Soup and ensemble, batch by batch"
        figure.suptitle(f"{heading}, {size} networks", x=0.01, ha="left", weight="bold")
    return figure


def has_pair(curves: Sequence[Curve]) -> bool:
    """Whether there are a soup and an ensemble of logits to compare."""
    return {"Average", "LogitsEnsemble"} <= {curve["aggregate"] for curve in curves}


def _pair(curves: Sequence[Curve]) -> tuple[str, str]:
    soup, ensemble = (
        next(curve["name"] for curve in curves if curve["aggregate"] == aggregate)
        for aggregate in ("Average", "LogitsEnsemble")
    )
    return soup, ensemble


def _mean(
    curves: Sequence[Curve], name: str, size: int
) -> tuple[list[float], np.ndarray, np.ndarray | None]:
    """Factors in order, mean accuracy over seeds, and its standard deviation if several."""
    of = [curve for curve in curves if (curve["name"], curve["pool_size"]) == (name, size)]
    order = np.argsort(of[0]["factor"])
    factor = [of[0]["factor"][index] for index in order]
    values = np.asarray([curve["accuracy"] for curve in of], dtype=float)[:, order]
    return factor, values.mean(0), values.std(0, ddof=1) if len(values) > 1 else None


def _factors(axes: Any, factor: Sequence[float]) -> None:
    # Evenly spaced, since factors may be fractions or hundreds.
    turned = {"rotation": 45, "ha": "right"} if len(factor) > 8 else {}
    axes.set_xticks(range(len(factor)), [f"{one:g}" for one in factor], **turned)


def _panels(
    count: int, size: tuple[float, float], sharex: bool = False
) -> tuple[Figure, list[Any]]:
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    width, height = max(5.0, size[0] * columns), 1.1 + size[1] * rows
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=True).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels
