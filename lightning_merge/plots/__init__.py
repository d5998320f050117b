"""Figures, drawn from what was stored; each function returns a `matplotlib` figure."""

from lightning_merge.plots.alphas import plot_alphas
from lightning_merge.plots.barrier import plot_barrier
from lightning_merge.plots.methods import plot_methods
from lightning_merge.plots.style import save
from lightning_merge.plots.triangle import plot_triangle

__all__ = ["plot_alphas", "plot_barrier", "plot_methods", "plot_triangle", "save"]
