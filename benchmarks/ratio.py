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
        ours: The median of ours, in seconds.
        theirs: The median of what it is held against, in seconds.
        ratio: The median of the ratios of the pairs.
        spread: Half the distance between the quartiles of the ratios; nan if there is one pair.
        against: What it is held against, where the name does not say so.
        goal: What was to be reached, if anything.
        unit: In what `ours` and `theirs` are counted.
    """

    name: str
    ours: float
    theirs: float
    ratio: float
    spread: float
    against: str = ""
    goal: str = ""
    unit: str = "s"


def measure(
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    pairs: int,
    warm_up: int = 2,
    against: str = "",
    goal: str = "",
    before: Callable[[], object] = lambda: None,
) -> Ratio:
    """Runs both by turns and takes medians; `before` runs before each, and is not counted."""
    for _ in range(warm_up):
        for action in (ours, theirs):
            before()
            action()
    first, second = [], []
    for index in range(pairs):
        # Each goes first as often as the other: whoever does pays for cold caches.
        order = (ours, theirs) if index % 2 else (theirs, ours)
        taken = {}
        for action in order:
            before()
            taken[action] = seconds(action)
        first.append(taken[ours])
        second.append(taken[theirs])
    return of_pairs(name, first, second, against, goal)


def of_pairs(
    name: str, first: list[float], second: list[float], against: str = "", goal: str = ""
) -> Ratio:
    """The medians of durations that were taken in turns, in pairs."""
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (0, 0, float("nan"))
    return Ratio(
        name,
        statistics.median(first),
        statistics.median(second),
        statistics.median(ratios),
        (high - low) / 2,
        against,
        goal,
    )


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
