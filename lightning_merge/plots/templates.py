"""Templates of a linear classifier beside its classes (Rethinking, Fig. 1, 2 and 9 to 17)."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lightning_merge.plots.figure import network_figure
from lightning_merge.plots.style import style

_GAP, _BETWEEN, _ABOVE = 0.05, 0.3, 0.34


@network_figure("templates", paper="Wang et al., Rethinking Weight-Averaged Model-merging")
def plot_templates(
    templates: Tensor,
    averages: Tensor | None,
    names: Sequence[str],
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draws each class's template, with its average image to the left.

    Args:
        templates: `(classes, C, H, W)`; each is scaled to its own largest weight, with zero in
            the middle: grey in colour images, white in others.
        averages: Pixels in [0, 1], of the same shape; None to draw templates alone.
        names: The classes' names.
        title: The figure's heading.
        caption: Text under the figure.
    """
    shown = [[to_pixels(template, template)] for template in templates]
    if averages is not None:
        shown = [[_grey(average), *images] for average, images in zip(averages, shown, strict=True)]
    return _sheet(shown, names, title or "Templates of a linear classifier", caption)


def plot_merged_templates(
    templates: Tensor, merged: Tensor, names: Sequence[str], title: str = "", caption: str = ""
) -> Figure:
    """Draws pairs of templates, and to their right the mean of each pair.

    Args:
        templates: `(classes, C, H, W)`.
        merged: `(classes // 2, C, H, W)`: the i-th of the first half with the i-th of the
            second. All three are on one scale, so that fading is visible.
        names: The classes' names.
        title: The figure's heading.
        caption: Text under the figure.
    """
    half = len(merged)
    shown, headings = [], []
    for index, mean in enumerate(merged):
        parents = templates[[index, index + half]]
        shown.append([to_pixels(image, parents) for image in (*parents, mean)])
        headings.append(f"{names[index]} + {names[index + half]}")
    return _sheet(shown, headings, title or "Templates merged in pairs", caption)


def to_pixels(weights: Tensor, scale: Tensor) -> np.ndarray:
    """Weights `(C, H, W)` as pixels `(H, W, 3)` in [0, 1], zero in the middle.

    Three channels become colours; the mean of any other number of channels is drawn in two colours,
    orange above zero and purple below. The 99.5th percentile of the magnitudes of `scale` reaches
    the ends.
    """
    largest = float(np.quantile(np.abs(scale.numpy()), 0.995)) or 1.0
    pixels = (0.5 + 0.5 * weights / largest).clamp(0, 1)
    if len(pixels) == 3:
        return np.asarray(pixels.permute(1, 2, 0))
    return np.asarray(mpl.colormaps["PuOr_r"](pixels.mean(0).numpy())[..., :3])


def _grey(image: Tensor) -> np.ndarray:
    shown = image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
    return np.asarray(shown.clamp(0, 1).permute(1, 2, 0))


def _sheet(
    cells: Sequence[Sequence[np.ndarray]], headings: Sequence[str], title: str, caption: str
) -> Figure:
    """All cells on one sheet, each with its images side by side under a heading."""
    per_cell = len(cells[0])
    columns = _columns(len(cells), per_cell)
    width, height = per_cell + (per_cell - 1) * _GAP + _BETWEEN, 1 + _ABOVE
    rows = -(-len(cells) // columns)
    inches = min(0.95, 10.0 / (columns * width))
    size = (max(4.5, columns * width * inches), rows * height * inches + 0.75)
    with style():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        for index, (images, heading) in enumerate(zip(cells, headings, strict=True)):
            left, top = (index % columns) * width, -(index // columns) * height
            for place, image in enumerate(images):
                x = left + place * (1 + _GAP)
                extent: Any = (x, x + 1, top - 1, top)
                axes.imshow(image, extent=extent, interpolation="nearest")
            middle = left + (per_cell + (per_cell - 1) * _GAP) / 2
            font = max(4.5, min(8.0, 9.5 * inches))
            axes.text(middle, top + 0.05, heading, ha="center", va="bottom", fontsize=font)
        axes.set_xlim(-0.02, columns * width - _BETWEEN + 0.02)
        axes.set_ylim(-rows * height + _ABOVE - 0.02, _ABOVE)
        axes.set_aspect("equal")
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        if caption:
            figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color="#444444")
    return figure


def _columns(cells: int, per_cell: int) -> int:
    """How many columns make the sheet wider than high, with equal rows where possible."""
    wanted = max(1, round((1.6 * cells * (1 + _ABOVE) / (per_cell + _BETWEEN)) ** 0.5))
    near = sorted(range(max(2, wanted - 1), wanted + 3), key=lambda n: abs(n - wanted))
    even = [n for n in near if cells % n == 0]
    return min(even[0] if even else wanted, cells)
