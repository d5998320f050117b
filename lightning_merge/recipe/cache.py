"""What several recipes on the same ingredients share: alignments, searches, kernels."""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Cached(Generic[T]):
    """A value, not to be changed, and what computing it took.

    `saved` is that time where it had been computed before; 0 where it was computed just now.
    """

    value: T
    seconds: float
    saved: float = 0.0


class _Itself:
    """An object that equals nothing else, kept alive: another one never gets its number."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def identity(part: object) -> Hashable:
    """What distinguishes the parts of two recipes, for a key: class and settings.

    Settings are compared by value where they are numbers, texts, or objects of the same kind as a
    part; tensors, networks and functions are equal to themselves alone.
    """
    if part is None or isinstance(part, str | bytes | int | float | complex):
        return type(part).__name__, part
    if isinstance(part, list | tuple):
        return type(part).__name__, *map(identity, part)
    if isinstance(part, Mapping):
        return type(part).__name__, *((identity(k), identity(v)) for k, v in part.items())
    kind = type(part)
    if kind.__repr__ is not object.__repr__ or not hasattr(part, "__dict__"):
        return _Itself(part)
    return (f"{kind.__module__}.{kind.__qualname__}", identity(dict(sorted(vars(part).items()))))


def text_of(key: Hashable) -> str | None:
    """A key as text that another process makes of the same one; None if none could."""
    if isinstance(key, tuple):
        parts = [text_of(part) for part in key]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    return None if isinstance(key, _Itself) else repr(key)


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
