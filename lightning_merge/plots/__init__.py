"""Figures, drawn from stored results; each function returns a `matplotlib` figure."""

from lightning_merge.plots.alpha_histograms import plot_alphas
from lightning_merge.plots.barrier import plot_barrier
from lightning_merge.plots.bars import plot_bars
from lightning_merge.plots.embedding import plot_embedding
from lightning_merge.plots.gap import plot_gap
from lightning_merge.plots.kernels import plot_kernels
from lightning_merge.plots.methods import plot_methods
from lightning_merge.plots.pools import plot_pools
from lightning_merge.plots.scaling_curves import (
    plot_magnitude,
    plot_magnitude_gap,
    plot_magnitude_scatter,
)
from lightning_merge.plots.style import save
from lightning_merge.plots.templates import plot_merged_templates, plot_templates
from lightning_merge.plots.triangle import plot_triangle

__all__ = [
    "plot_alphas",
    "plot_barrier",
    "plot_bars",
    "plot_embedding",
    "plot_gap",
    "plot_kernels",
    "plot_magnitude",
    "plot_magnitude_gap",
    "plot_magnitude_scatter",
    "plot_merged_templates",
    "plot_methods",
    "plot_pools",
    "plot_templates",
    "plot_triangle",
    "save",
]
