"""The style of all figures, and saving them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from lightning_merge.files import write_whole
from lightning_merge.plots.wrapped_titles import wrap_titles

# Okabe and Ito's palette (2008): distinguishable with any colour vision, and in grey.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#6E6E6E"
CYCLE = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@contextmanager
def style() -> Iterator[None]:
    """Applies matplotlib's settings for a figure, and restores the user's own afterwards."""
    settings: Any = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=CYCLE),
        "grid.color": "#E4E4E4",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "lines.markersize": 4.5,
        "figure.dpi": 110,
        "savefig.dpi": 200,
        "svg.fonttype": "none",
    }
    with mpl.rc_context(settings):
        yield


def looks(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The line style of each method, by its name, as settings of `plot`.

    Ingredients are grey and dotted, merges solid, ensembles dashed with white markers; colours and
    markers are in order of appearance.
    """
    kinds = {row["method"]: row["kind"] for row in rows}
    made = [name for name, kind in kinds.items() if kind != "ingredient"]
    colours = [*(colour for colour in CYCLE if colour != GREY), "black"]
    found: dict[str, dict[str, Any]] = {}
    for name, kind in kinds.items():
        if kind == "ingredient":
            found[name] = {"color": GREY, "ls": ":", "marker": "."}
            continue
        index = made.index(name)
        found[name] = {
            "color": colours[index % len(colours)],
            "marker": marker(index),
        }
        if kind == "ensemble":
            found[name] |= {"ls": "--", "markerfacecolor": "white"}
    return found


def marker(index: int) -> str:
    """The marker of a curve by its number, where colours go round as often."""
    # One more at each turn, or the same pairs would return.
    return MARKERS[(index + index // len(MARKERS)) % len(MARKERS)]


def same_curves(curves: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Which curves to draw: of those that coincide only the first, under the names of all.

    All have their values at the same places. The names of the curves to draw are by their label:
    `direct = Permute` stands for both.
    """
    groups: dict[str, list[str]] = {}
    for name, values in curves.items():
        same = (
            first
            for first in groups
            if len(values) == len(curves[first])
            and np.allclose(values, curves[first], rtol=0, atol=1e-6, equal_nan=True)
        )
        groups.setdefault(next(same, name), []).append(name)
    return {" = ".join(names): first for first, names in groups.items()}


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Writes a figure as PNG and as SVG.

    Args:
        figure: The figure.
        path: Where to; `.png` and `.svg` are added, or replace one another.

    Returns:
        The two files.
    """
    # Resolution and fonts take effect when a file is written, not when the figure is made.
    with style():
        wrap_titles(figure)
        return [
            write_whole(file, lambda partial: figure.savefig(partial, bbox_inches="tight"))
            for file in files(path)
        ]


def files(path: str | Path) -> list[Path]:
    """The files that `save` writes for this path."""
    path = Path(path)
    # Not `with_suffix`: a name may have dots of its own, as in `val_acc=0.97`.
    name = path.stem if path.suffix in (".png", ".svg") else path.name
    return [path.with_name(name + suffix) for suffix in (".png", ".svg")]
