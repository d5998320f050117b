"""A progress bar for anything that may take more than two seconds."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def tracked(items: Iterable[T], description: str, show: bool = True) -> Iterator[T]:
    """Yields the items with a progress bar, which disappears at the end.

    It has an end where the items have a length, and is never shown if the output is not a terminal.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield from items
        return
    yield from track(items, description=description, transient=True, console=console)
