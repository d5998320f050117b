"""Loss and accuracy along the line from B to A."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lightning_merge.plots.style import CYCLE, MARKERS, style


def plot_barrier(lines: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draws test loss and accuracy against alpha.

    Args:
        lines: Each with `name`, `alpha`, `loss` and `accuracy` (lists of one length). Lines
            of one name, from several seeds, become a mean and a band of one standard
            deviation.
        title: What to head the figure with.

    Returns:
        The figure: loss on the left, accuracy on the right.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        by_name[line["name"]].append(line)
    with style():
        figure = Figure(figsize=(8.2, 3.2), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for index, (name, repeated) in enumerate(by_name.items()):
            look = {
                "color": CYCLE[index % len(CYCLE)],
                "marker": MARKERS[index % len(MARKERS)],
                # Where lines coincide, the upper one lets the lower one be seen.
                "ls": "--" if index % 2 else "-",
            }
            for axes, what in ((loss, "loss"), (accuracy, "accuracy")):
                alpha = np.asarray(repeated[0]["alpha"])
                values = np.asarray([line[what] for line in repeated])
                axes.plot(alpha, values.mean(0), label=name, **look)
                if len(values) > 1:
                    mean, deviation = values.mean(0), values.std(0, ddof=1)
                    axes.fill_between(
                        alpha, mean - deviation, mean + deviation, color=look["color"], alpha=0.15
                    )
        loss.set_ylabel("test loss")
        accuracy.set_ylabel("test accuracy")
        accuracy.set_ylim(0, 1.02)
        for axes in (loss, accuracy):
            axes.set_xlabel("α   (0: B,  1: A)")
        loss.set_title(title or "Along the line from B to A")
        handles, labels = loss.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure
