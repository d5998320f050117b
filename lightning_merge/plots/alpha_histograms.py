"""How the learned alphas are distributed, layer by layer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from lightning_merge.plots.figure import Figures, Stored, figure
from lightning_merge.plots.style import BLUE, SKY, style


@figure(
    "alphas",
    source="checkpoint",
    lacking="holds no alphas: give a checkpoint that an NP Merge wrote",
    paper="Orozco Camacho et al. 2024, NP Merge",
    needs="NPMerge among the recipes",
)
def alphas(stored: Stored) -> Figures:
    """Learned merge coefficients (alphas) by layer."""
    found = stored.first.get("alphas")
    if not found:
        return {}
    title = stored.heading("learned alphas by layer")
    return {"alphas": plot_alphas(found, title, count=alphas_of(stored.first))}


def plot_alphas(
    alphas: Mapping[str, Tensor], title: str = "", bins: int = 60, count: int = 2
) -> Figure:
    """Draws a histogram of the alphas of each layer, one ridge above the other.

    Args:
        alphas: The alphas by parameter name, of any shape, in the network's order.
            Tensors with one axis (biases, norms) are drawn together as one ridge.
        title: The figure's heading.
        bins: How many bins between the smallest and the largest alpha.
        count: How many ingredients were merged: these are the alphas of the first one, and if
            all are `1 / count` the merge is the mean.

    Returns:
        The figure; the first layer on top, each ridge scaled to its own highest bin, with
        a tick at its mean.
    """
    layers = {name: alpha for name, alpha in alphas.items() if alpha.dim() > 1}
    vectors = [alpha.flatten() for alpha in alphas.values() if alpha.dim() <= 1]
    roots = {f"{name.split('.')[0]}." for name in alphas}
    # A prefix that all names share does not distinguish them.
    prefix = roots.pop() if len(roots) == 1 else ""
    ridges = {
        name.removeprefix(prefix).removesuffix(".weight"): _values(alpha)
        for name, alpha in layers.items()
    }
    if vectors:
        ridges["biases and norms"] = np.concatenate([_values(vector) for vector in vectors])
    everything = np.concatenate(list(ridges.values()))
    mean_of_all = 1 / count
    reach = max(float(np.quantile(np.abs(everything - mean_of_all), 0.999)), 0.02) * 1.05
    edges = np.linspace(mean_of_all - reach, mean_of_all + reach, bins + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    with style():
        # Visible on white and on black: a page shows figures on either.
        between = LinearSegmentedColormap.from_list("ridges", [BLUE, SKY])
        colours = between(np.linspace(0, 1, len(ridges)))
        figure = Figure(figsize=(6.4, 1.2 + 0.24 * len(ridges)), layout="constrained")
        axes = figure.subplots()
        height = 1.6
        for row, (values, colour) in enumerate(zip(ridges.values(), colours, strict=True)):
            base = len(ridges) - row
            counts, _ = np.histogram(values, edges)
            ridge = base + height * counts / max(counts.max(), 1)
            axes.fill_between(centres, base, ridge, color=colour, alpha=0.9, lw=0, zorder=row + 2)
            axes.plot(centres, ridge, color="white", lw=0.8, zorder=row + 2)
            mean = float(values.mean())
            axes.plot(
                [mean, mean], [base, base + 0.45], color="black", lw=1.2, zorder=len(ridges) + 3
            )
        axes.axvline(mean_of_all, color="#888888", lw=0.8, ls="--", zorder=1)
        axes.set_yticks(np.arange(len(ridges), 0, -1), list(ridges), fontsize=7)
        axes.set_ylim(0.8, len(ridges) + height + 0.3)
        axes.set_xlim(edges[0], edges[-1])
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        if count == 2:
            axes.set_xlabel("α   (0: all B,  0.5: their mean,  1: all A)")
        else:
            axes.set_xlabel(
                f"α of the first of {count} ingredients   (0: none of it,  1/{count}: the mean of "
                "all,  1: it alone)"
            )
        axes.set_title(title or "Learned alphas by layer")
    return figure


def alphas_of(of: Mapping[str, Any]) -> int:
    """The number of ingredients that alphas weight, from the results stored with them.

    With more than two ingredients, each has its own alphas.
    """
    if "alphas_of" in of:
        return int(of["alphas_of"])
    return 1 + max(len(of.get("other_alphas") or of.get("others") or ()), 1)


def _values(alpha: Tensor) -> np.ndarray:
    return alpha.detach().float().cpu().flatten().numpy()
