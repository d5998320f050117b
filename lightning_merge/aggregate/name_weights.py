"""Weights of the ingredients: one for each, or for each and every pattern of names."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from lightning_merge.errors import ConfigError

Weights = Sequence[float] | Mapping[str, Sequence[float]]
"""K numbers; or K numbers by regular expression, of which the first that is found in a tensor's
name counts (`{r"^layer4\\.": [0.9, 0.1]}`). Tensors that none is found in have equal weights."""


class NameWeights:
    """The weights of K ingredients for each tensor, all 1 if none are given.

    `method` is what to call the method in an error.
    """

    def __init__(self, weights: Weights | None, count: int, method: str) -> None:
        self._method = method
        self._equal = [1.0] * count
        self._patterns: list[tuple[re.Pattern[str], list[float]]] = []
        if weights is None:
            return
        if not isinstance(weights, Mapping):
            self._equal = self._checked(weights, count)
            return
        for pattern, numbers in weights.items():
            self._patterns.append((compiled(pattern, "weights"), self._checked(numbers, count)))

    def _checked(self, numbers: Sequence[float], count: int) -> list[float]:
        try:
            listed = [float(number) for number in numbers]
            math.fsum(map(abs, listed))
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"{self._method}: weights {str(numbers)[:80]!r}: give a finite number for each "
                f"of {count} networks, none near the largest that there are"
            ) from error
        if len(listed) != count or not all(map(math.isfinite, listed)):
            raise ConfigError(
                f"{self._method}: {len(listed)} weights ({_short(listed)}) for {count} networks; "
                "give one finite weight for each"
            )
        return listed

    def of(self, name: str) -> list[float]:
        """The K weights of one tensor."""
        return next((w for p, w in self._patterns if p.search(name)), self._equal)

    def check_means(self) -> "NameWeights":
        """Checks that weights can be divided by their sum; a `ConfigError` if one is 0."""
        for numbers in (self._equal, *(numbers for _, numbers in self._patterns)):
            if numbers and not math.fsum(numbers):
                raise ConfigError(
                    f"{self._method}: weights ({_short(numbers)}) of sum 0 have no mean; choose "
                    "others"
                )
        return self

    def check_used(self, names: Iterable[str]) -> "NameWeights":
        """Checks that every expression is found in a tensor's name; a `ConfigError` if not."""
        names = list(names)
        for pattern, _ in self._patterns:
            if not any(pattern.search(name) for name in names):
                raise ConfigError(
                    f"{self._method}: weights for '{pattern.pattern}' are for no tensor; the first "
                    f"is '{next(iter(names), '')}'"
                )
        return self


def compiled(pattern: str, option: str) -> re.Pattern[str]:
    """A regular expression, given as an option; a `ConfigError` if it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"{option}: '{pattern}' is no regular expression: {error}; escape what is meant "
            "literally"
        ) from error


def _short(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers[:8]) + (
        ", ..." if len(numbers) > 8 else ""
    )
