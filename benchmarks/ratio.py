"""The ratio of two durations, measured in turns so that both see the same machine."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """One measured ratio.

    Attributes:
        name: What was measured.
        ours: The median duration of ours, in seconds.
        theirs: The median duration of what it is held against, in seconds.
        ratio: The median of the ratios of the pairs.
        spread: Half the distance between the quartiles of the ratios.
    """

    name: str
    ours: float
    theirs: float
    ratio: float
    spread: float


def measure(
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    pairs: int,
    warm_up: int = 2,
) -> Ratio:
    """Runs both by turns and takes medians."""
    for _ in range(warm_up):
        ours()
        theirs()
    first, second = [], []
    for index in range(pairs):
        # Each goes first as often as the other: whoever does pays for cold caches.
        order = (ours, theirs) if index % 2 else (theirs, ours)
        seconds = {action: _seconds(action) for action in order}
        first.append(seconds[ours])
        second.append(seconds[theirs])
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Ratio(
        name,
        statistics.median(first),
        statistics.median(second),
        statistics.median(ratios),
        (high - low) / 2,
    )


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
