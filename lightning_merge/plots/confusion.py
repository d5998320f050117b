"""Which classes are taken for which: the network to use, the best ingredient, the ensemble."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lightning_merge.plots.figure import Figures, Stored, figure
from lightning_merge.plots.style import style

# In a report a matrix of more classes could not be read.
_MOST_CLASSES = 20
_ROLES = ("best_ingredient", "use", "best_merge", "ensemble")


@figure(
    "confusion",
    lacking="holds no confusion matrix: give the results.json of compare or study on one class "
    "each example",
)
def confusion(stored: Stored) -> Figures:
    """Confusion matrices of the recommended network, the best ingredient and the ensemble."""
    found = stored.first.get("confusion")
    if not found or (stored.in_report and len(found["classes"]) > _MOST_CLASSES):
        return {}
    advice = stored.first.get("recommendation") or {}
    named = [advice[role] for role in _ROLES if advice.get(role)]
    wanted = [(one["method"], one["pool_size"]) for one in named]
    matrices = {(one["method"], one["pool_size"]): one["counts"] for one in found["matrices"]}
    shown = [key for key in dict.fromkeys(wanted) if key in matrices] or list(matrices)[:3]
    title = stored.heading("true against predicted class")
    panels = {method: matrices[method, size] for method, size in shown}
    return {"confusion": plot_confusion(panels, found["classes"], title)}


def plot_confusion(
    matrices: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str], title: str = ""
) -> Figure:
    """Draws confusion matrices side by side, named by what they are of.

    A row is a true class and has the counts of predicted ones; colours are shares of a row.
    """
    side = max(2.6, 0.3 * len(classes) + 0.9)
    with style():
        figure = Figure(figsize=(side * len(matrices) + 0.4, side + 0.7), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.08)  # type: ignore[union-attr, call-arg]
        panels = figure.subplots(1, len(matrices), squeeze=False, sharey=True)[0]
        for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
            counts = np.asarray(matrix)
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for (true, predicted), count in np.ndenumerate(counts):
                colour = "white" if shares[true, predicted] > 0.5 else "black"
                if count and len(classes) <= _MOST_CLASSES:
                    axes.text(
                        predicted, true, count, ha="center", va="center", color=colour, fontsize=7
                    )
            places = range(len(classes))
            axes.set_xticks(places, classes, rotation=90 if max(map(len, classes)) > 2 else 0)
            axes.set_yticks(places, classes)
            axes.grid(visible=False)
            axes.set_xlabel("predicted")
            axes.set_title(name, weight="normal")
        panels[0].set_ylabel("true class")
        figure.suptitle(title or "Confusion", x=0.01, ha="left", weight="bold")
    return figure
