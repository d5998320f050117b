"""Clean and shifted accuracy between the pre-trained network and fine-tuned or merged ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lightning_merge.plots.figure import Figures, Stored, figure
from lightning_merge.plots.legends import legend_below
from lightning_merge.plots.style import CYCLE, style


@figure(
    "wise_ft",
    lacking="holds no WiSE-FT curves: run compare or study with --wise_ft '{points: 11}'",
    paper="Wortsman et al. 2022, Robust Fine-Tuning",
    needs="--wise_ft",
)
def robustness_curve(stored: Stored) -> Figures:
    """Accuracy on clean and corrupted images against the share of the fine-tuned network."""
    found = stored.first.get("wise_ft")
    return {"wise_ft": plot_robustness(found, stored.title)} if found else {}


def plot_robustness(found: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draws the curves of several networks: against the coefficient, and shifted against clean.

    Each has `name`, `coefficient` (P numbers) and `accuracy`: P numbers by condition, one of them
    `clean`. Those of one name, from several seeds, are averaged.
    """
    names = list(dict.fromkeys(one["name"] for one in found))
    with style():
        figure = Figure(figsize=(8.2, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for index, name in enumerate(names):
            own = [one for one in found if one["name"] == name]
            # An accuracy that is no number is stored as null: a gap.
            clean = np.asarray([one["accuracy"]["clean"] for one in own], float).mean(0)
            # (seeds, corruptions, P)
            away = np.asarray(
                [[v for k, v in one["accuracy"].items() if k != "clean"] for one in own], float
            ).mean((0, 1))
            color = CYCLE[index % len(CYCLE)]
            share = own[0]["coefficient"]
            left.plot(share, clean, color=color, label=name)
            left.plot(share, away, color=color, ls="--")
            right.plot(clean, away, color=color, marker="o", ms=3)
            right.plot(clean[-1:], away[-1:], color=color, marker="*", ms=9)
        left.set_xlabel("share of the fine-tuned or merged network")
        left.set_ylabel("test accuracy (dashed: corrupted)")
        right.set_xlabel("clean accuracy")
        right.set_ylabel("corrupted accuracy (star: share 1)")
        left.set_title(title or "From the pre-trained network on")
        legend_below(figure, left, 4)
    return figure
