"""Aggregation of aligned weights: functions over state dicts and flat buffers."""

from lightning_merge.aggregate.average import average, interpolate
from lightning_merge.aggregate.dare import dare
from lightning_merge.aggregate.dpp import exact_map, greedy_order, sample_kdpp, select_dpp
from lightning_merge.aggregate.fisher import diagonal_fisher, fisher_average
from lightning_merge.aggregate.greedy import Trial, greedy_soup, greedy_soup_by_counts
from lightning_merge.aggregate.kernel import (
    cosine_similarity_matrix,
    dpp_kernel,
    relative_gain_quality,
)
from lightning_merge.aggregate.model_stock import model_stock
from lightning_merge.aggregate.on_disk import SafetensorsState
from lightning_merge.aggregate.regmean import gram_matrices, regmean
from lightning_merge.aggregate.task_vectors import (
    LazyTaskVector,
    MergedVector,
    sum_vectors,
    task_arithmetic,
    task_vector,
)
from lightning_merge.aggregate.ties import ties, ties_vector

__all__ = [
    "LazyTaskVector",
    "MergedVector",
    "SafetensorsState",
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
