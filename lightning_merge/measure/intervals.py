"""How sure an accuracy is, and a difference of two: intervals and tests over test examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 5000

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95% interval, by `bootstrap` over examples, or `Wilson`, from share and number alone."""

    low: float
    high: float
    how: str


@dataclass(frozen=True)
class Paired:
    """The difference of two means over the same examples, the first minus the second.

    `low` and `high` are the ends of its 95% bootstrap interval over examples; the test gives the
    two-sided p-value of no difference.
    """

    difference: float
    low: float
    high: float
    p_value: float
    test: str


def bootstrap(values: Values, sizes: Sequence[int] = ()) -> tuple[float, float]:
    """The 95% percentile interval of a mean.

    Of a resample (N examples drawn with replacement) only how often each value occurs matters,
    and these counts are multinomial: so thousands of resamples cost one draw each, exactly.

    Args:
        values: `(N,)`.
        sizes: How many of the values, in order, belong to each of several tasks: resamples are
            then drawn within each, and the mean is that of the tasks' means. Empty for one task.
    """
    generator = np.random.default_rng(0)
    means: Values = np.zeros(RESAMPLES)
    parts = _parts(values, sizes)
    for part in parts:
        distinct, counts = np.unique(part, return_counts=True)
        draws = generator.multinomial(len(part), counts / len(part), size=RESAMPLES)
        means += draws @ distinct / len(part) / len(parts)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def interval_of(right: Values | None, accuracy: float | None, *sizes: int) -> Interval | None:
    """The interval of an accuracy: by bootstrap where each example's answer is known.

    Wilson's is taken where it is not, and where all examples (of each task) are equally right:
    their resamples have no spread, which is not to say that the next example is sure.

    `right` is `(N,)`, how right each example is; sizes are the number of test examples, of each
    task where the accuracy is a mean over tasks. An accuracy of None or NaN has no interval.
    """
    from scipy.stats import binomtest

    if accuracy is None or not np.isfinite(accuracy) or min(sizes) < 1:
        return None
    if right is not None and any(part.min() < part.max() for part in _parts(right, sizes)):
        return Interval(*bootstrap(right, sizes=sizes), "bootstrap")
    # As many examples as give a mean over tasks its variance, were all tasks equally hard.
    examples = round(len(sizes) ** 2 / sum(1 / size for size in sizes))
    hits = round(min(max(accuracy, 0.0), 1.0) * examples)
    found = binomtest(hits, examples).proportion_ci(LEVEL, method="wilson")
    return Interval(float(found.low), float(found.high), "Wilson")


def over_seeds(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95% t interval of a mean over repetitions; None with fewer than two."""
    from scipy.stats import t

    count = len(differences)
    if count < 2:
        return None
    values = np.asarray(differences, np.float64)
    half = float(t.ppf((1 + LEVEL) / 2, count - 1) * values.std(ddof=1) / count**0.5)
    return float(values.mean()) - half, float(values.mean()) + half


def paired(first: Values, second: Values, sizes: Sequence[int] = ()) -> Paired:
    """Compares two networks on the same examples.

    McNemar's exact test where each example is right or wrong; where it may be partly right
    (several labels, means over seeds) a paired t-test over examples, or the exact sign test where
    all differ by as much, which leaves no deviation. A mean over several tasks is
    compared with those that come about when the two networks' answers to an example are exchanged
    at random (a paired permutation test).

    Both are `(N,)`, how right each example is; sizes are as for `bootstrap`.
    """
    from scipy.stats import binomtest, ttest_rel

    differences = first - second
    if len(sizes) > 1:
        low, high = bootstrap(differences, sizes=sizes)
        difference, p_value = _permuted(_parts(differences, sizes))
        return Paired(difference, low, high, p_value, "paired permutation test over examples")
    whole = bool(np.isin(np.concatenate([first, second]), (0.0, 1.0)).all())
    test = "exact McNemar test" if whole else "paired t-test over examples"
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    # Differences of means over seeds are equal but for their last digits.
    alike = not whole and float(np.ptp(differences)) < 1e-12
    if alike:
        test = "exact sign test over examples"
    if better == worse == 0:
        p_value = 1.0
    elif whole or alike:
        p_value = float(binomtest(better, better + worse).pvalue)
    else:
        p_value = float(ttest_rel(first, second).pvalue)
    return Paired(float(differences.mean()), *bootstrap(differences), p_value, test)


def _permuted(parts: Sequence[Values]) -> tuple[float, float]:
    """The mean of the tasks' mean differences, and how often chance alone gives one as large."""
    generator = np.random.default_rng(0)
    drawn: Values = np.zeros(RESAMPLES)
    for part in parts:
        # The signs of equal differences are counted, not drawn one by one.
        sizes, counts = np.unique(np.abs(part), return_counts=True)
        for size, count in zip(sizes, counts, strict=True):
            signs = 2 * generator.binomial(count, 0.5, RESAMPLES) - count
            drawn += size * signs / len(part) / len(parts)
    difference = float(np.mean([part.mean() for part in parts]))
    # Sums of the same numbers in another order differ in their last digits.
    extreme = int((np.abs(drawn) >= abs(difference) - 1e-12).sum())
    return difference, (extreme + 1) / (RESAMPLES + 1)


def _parts(values: Values, sizes: Sequence[int]) -> list[Values]:
    return np.split(values, np.cumsum(sizes)[:-1]) if len(sizes) > 1 else [values]
