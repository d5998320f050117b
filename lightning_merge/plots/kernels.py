"""First-layer kernels as a grid, and their similarities (Rethinking, Fig. 7, 12 and 13)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lightning_merge.analysis.similarity import similarities
from lightning_merge.plots.figure import network_figure
from lightning_merge.plots.style import style
from lightning_merge.plots.templates import to_pixels


@network_figure("kernels", paper="Wang et al., Rethinking Weight-Averaged Model-merging")
def plot_kernels(kernels: Mapping[str, Tensor], title: str = "", most: int = 64) -> Figure:
    """Draws the kernels of each network, and below them the cosines between kernels.

    Args:
        kernels: `(units, C, height, width)` by network. All are on one scale, which shows how
            much smaller an average's weights are than its ingredients'.
        title: The figure's heading.
        most: The most kernels to draw of each network, the first ones.
    """
    shown = {name: tensor[:most] for name, tensor in kernels.items()}
    strongest = max(shown.values(), key=lambda tensor: float(tensor.abs().quantile(0.995)))
    with style():
        figure = Figure(figsize=(max(4.8, 3.3 * len(shown) + 0.6), 7.0), layout="constrained")
        grid = figure.subplots(2, len(shown), squeeze=False)
        for (above, below), (name, tensor) in zip(grid.T, shown.items(), strict=True):
            _draw(above, tensor, strongest)
            norm = float(kernels[name].flatten(1).norm(dim=1).mean())
            above.set_title(f"{name}\nmean norm {norm:.3f}", fontsize=9, weight="normal")
            _cosines(below, tensor)
        last = grid[1, -1].get_images()[0]
        bar = figure.colorbar(last, ax=list(grid[1]), shrink=0.85, pad=0.02)
        bar.set_label("cosine of two kernels")
        figure.suptitle(title or "Kernels of the first layer", x=0.01, ha="left", weight="bold")
    return figure


def _draw(axes: Any, tensor: Tensor, scale: Tensor) -> None:
    columns = int(np.ceil(len(tensor) ** 0.5))
    rows = -(-len(tensor) // columns)
    height, width = tensor.shape[-2:]
    step = 1.12
    axes.set_axis_off()
    for index, kernel in enumerate(tensor):
        x, y = step * (index % columns), -step * (index // columns)
        extent = (x, x + 1, y - height / width, y)
        axes.imshow(to_pixels(kernel, scale), extent=extent, interpolation="nearest")
        axes.text(x + 0.03, y - 0.04, str(index), fontsize=4, va="top", color="#333333")
    axes.set_xlim(-0.05, step * columns)
    axes.set_ylim(-step * rows, 0.05)
    axes.set_aspect("equal")


def _cosines(axes: Any, tensor: Tensor) -> None:
    cosines = similarities(tensor, tensor).numpy()
    axes.imshow(cosines, cmap="PuOr_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xlabel("kernel")
    axes.set_ylabel("kernel")
    others = cosines - 2 * np.eye(len(cosines), dtype=cosines.dtype)
    if len(cosines) > 1:
        a, b = sorted(int(i) for i in np.unravel_index(others.argmax(), others.shape))
        text = f"most alike: {a} and {b} ({cosines[a, b]:.2f})"
        axes.set_title(text, fontsize=8, weight="normal")
