"""Registries: one file with one decorator adds an aggregate, matching, figure or kind of work."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import walk_packages
from typing import Any, Generic, TypeVar

from lightning_merge.errors import ConfigError

T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One entry of a registry.

    Attributes:
        name: Its name in configurations and on the command line.
        value: The class or function.
        paper: Where it was published; empty if nowhere.
        needs: What it needs besides the ingredients, in a few words; empty if nothing.
    """

    name: str
    value: T
    paper: str = ""
    needs: str = ""

    @property
    def line(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.value) or "").partition("\n")[0]


class Registry(Generic[T]):
    """Classes or functions of one kind, by name.

    The package's modules are imported, and so register, on first use, as are those that other
    packages name under the entry-point group `lightning_merge.KIND`.

    Args:
        kind: What is registered, in the plural: `aggregates`.
        package: The package whose modules define the built-in ones; None if there is none.
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry[T]] = {}
        self._loaded = False

    def register(
        self, name: str | None = None, *, paper: str = "", needs: str = ""
    ) -> Callable[[D], D]:
        """A decorator that registers a class or function.

        Args:
            name: Its name in the registry; its Python name if not given.
            paper: Where it was published.
            needs: What it needs besides the ingredients.

        Raises:
            ConfigError: If the name is already taken.
        """

        def add(value: D) -> D:
            made: Entry[Any] = Entry(name or value.__name__, value, paper, needs)  # type: ignore[attr-defined]
            known = self._entries.get(made.name)
            if known is not None and _origin(known.value) != _origin(value):
                raise ConfigError(
                    f"two {self.kind} are called '{made.name}': {_origin(known.value)} and "
                    f"{_origin(value)}; register one under another name"
                )
            self._entries[made.name] = made
            return value

        return add

    def load(self) -> None:
        """Imports everything that registers here: this package's modules and entry points.

        Raises:
            ConfigError: If another package's entry point cannot be imported.
        """
        if self._loaded:
            return
        self._loaded = True
        if self.package is not None:
            home = import_module(self.package)
            for found in walk_packages(home.__path__, f"{self.package}."):
                import_module(found.name)
        for point in entry_points(group=f"lightning_merge.{self.kind}"):
            try:
                point.load()
            except Exception as error:
                self._loaded = False
                raise ConfigError(
                    f"entry point '{point.name}' of lightning_merge.{self.kind} ({point.value}) "
                    f"cannot be imported: {error}; mend or remove the package that has it"
                ) from error

    def __iter__(self) -> Iterator[Entry[T]]:
        """All entries, by name."""
        self.load()
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name.lower()))

    def get(self, name: str) -> Entry[T]:
        """The entry of this name; a `ConfigError` if there is none."""
        self.load()
        if name not in self._entries:
            known = ", ".join(entry.name for entry in self)
            raise ConfigError(f"'{name}' is none of the {self.kind}: choose among {known}")
        return self._entries[name]


def _origin(value: object) -> str:
    named = getattr(value, "draw", value)
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', named)}"
