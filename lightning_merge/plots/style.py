"""How all figures look, and how they are saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lightning_merge.files import write_whole

# Okabe and Ito's palette (2008): told apart with any colour vision, and in grey.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#6E6E6E"
CYCLE = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for a figure; the user's own are back afterwards."""
    import matplotlib as mpl
    from cycler import cycler

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


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Writes a figure as PNG and as SVG.

    Args:
        figure: The figure.
        path: Where to; `.png` and `.svg` are added, or replace each other.

    Returns:
        The two files.
    """
    return [
        write_whole(file, lambda partial: figure.savefig(partial, bbox_inches="tight"))
        for file in files(path)
    ]


def files(path: str | Path) -> list[Path]:
    """Where `save` writes a figure of this path."""
    path = Path(path)
    # Not `with_suffix`: a name may have dots of its own, as in `val_acc=0.97`.
    name = path.stem if path.suffix in (".png", ".svg") else path.name
    return [path.with_name(name + suffix) for suffix in (".png", ".svg")]
