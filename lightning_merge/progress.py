"""A progress bar for anything that may take more than two seconds."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def tracked(items: Iterable[T], description: str, show: bool = True) -> Iterator[T]:
    """Yields the items with a progress bar, which disappears at the end.

    Args:
        items: Anything that can be iterated; with a length, the bar has an end.
        description: The bar's label.
        show: Whether to show the bar; it is never shown if the output is not a terminal.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield from items
        return
    yield from track(items, description=description, transient=True, console=console)
