"""Means of all or nothing: where a number is missing, a mean of the others would mislead."""

import statistics
from collections.abc import Iterable

ROUNDING = 1e-6
"""Accuracies that differ by no more are equal: each one is rounded to float32, as batches are."""


def whole_mean(values: Iterable[float | None]) -> float | None:
    """The mean; None without values, or where one of them is None or NaN."""
    return mean_and_deviation(values)[0]


def mean_and_deviation(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """The mean (`whole_mean`), and the sample standard deviation; None of fewer than two."""
    given = list(values)
    known = [value for value in given if value is not None and value == value]
    if not known or len(known) < len(given):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None
