"""Aggregation of aligned weights: functions over state dicts and flat buffers.

Each name is imported when it is first used: averaging files needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_merge.aggregate.averaging import average, interpolate
    from lightning_merge.aggregate.dpp import exact_map, greedy_order, sample_kdpp, select_dpp
    from lightning_merge.aggregate.dropping import dare
    from lightning_merge.aggregate.fisher import diagonal_fisher, fisher_average
    from lightning_merge.aggregate.greedy_search import (
        Trial,
        greedy_soup,
        greedy_soup_by_counts,
    )
    from lightning_merge.aggregate.kernel import (
        cosine_similarity_matrix,
        dpp_kernel,
        relative_gain_quality,
    )
    from lightning_merge.aggregate.on_disk import SafetensorsState, StateOnDisk
    from lightning_merge.aggregate.regression_mean import gram_matrices, regmean
    from lightning_merge.aggregate.stock import model_stock
    from lightning_merge.aggregate.ties_merging import ties, ties_vector
    from lightning_merge.aggregate.vector_arithmetic import (
        MergedVector,
        sum_vectors,
        task_arithmetic,
    )
    from lightning_merge.aggregate.vector_difference import LazyTaskVector, task_vector

_HOMES = {
    "averaging": ("average", "interpolate"),
    "dpp": ("exact_map", "greedy_order", "sample_kdpp", "select_dpp"),
    "dropping": ("dare",),
    "fisher": ("diagonal_fisher", "fisher_average"),
    "greedy_search": ("Trial", "greedy_soup", "greedy_soup_by_counts"),
    "kernel": ("cosine_similarity_matrix", "dpp_kernel", "relative_gain_quality"),
    "on_disk": ("SafetensorsState", "StateOnDisk"),
    "regression_mean": ("gram_matrices", "regmean"),
    "stock": ("model_stock",),
    "ties_merging": ("ties", "ties_vector"),
    "vector_arithmetic": ("MergedVector", "sum_vectors", "task_arithmetic"),
    "vector_difference": ("LazyTaskVector", "task_vector"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "LazyTaskVector",
    "MergedVector",
    "SafetensorsState",
    "StateOnDisk",
    "Trial",
    "average",
    "cosine_similarity_matrix",
    "dare",
    "diagonal_fisher",
    "dpp_kernel",
    "exact_map",
    "fisher_average",
    "gram_matrices",
    "greedy_order",
    "greedy_soup",
    "greedy_soup_by_counts",
    "interpolate",
    "model_stock",
    "regmean",
    "relative_gain_quality",
    "sample_kdpp",
    "select_dpp",
    "sum_vectors",
    "task_arithmetic",
    "task_vector",
    "ties",
    "ties_vector",
]

if not TYPE_CHECKING:
    # Out of the type checker's sight, to which every name would be Any.
    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
