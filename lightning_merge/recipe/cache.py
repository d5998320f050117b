"""What several recipes on the same ingredients share: alignments, searches, kernels."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Cached(Generic[T]):
    """A cached value.

    Attributes:
        value: The value; not to be changed.
        seconds: What computing it took.
        saved: The same where it had been computed before; 0 where it was computed just now.
    """

    value: T
    seconds: float
    saved: float = 0.0


def identity(part: object) -> str:
    """What distinguishes the parts of two recipes, for a key: class and settings."""
    if part is None:
        return ""
    kind = type(part)
    return f"{kind.__module__}.{kind.__qualname__} {sorted(vars(part).items())}"


@dataclass
class Cache:
    """Values by keys of everything that they depend on (digests of weights, settings).

    Neither a hit nor a miss changes any result: what is found equals what would be computed.
    """

    _found: dict[tuple[Hashable, ...], Cached[Any]] = field(default_factory=dict)

    def get(self, key: tuple[Hashable, ...], compute: Callable[[], T]) -> Cached[T]:
        """The value under a key (all that it depends on), computed if it is not there."""
        if key in self._found:
            known: Cached[T] = self._found[key]
            return Cached(known.value, known.seconds, known.seconds)
        start = time.perf_counter()
        made = Cached(compute(), time.perf_counter() - start)
        self._found[key] = made
        return made
