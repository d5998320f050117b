"""A progress bar for anything that may take more than two seconds."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def tracked(items: Iterable[T], description: str, show: bool = True) -> Iterator[T]:
    """Yields what `items` yields, with a bar that is gone when they are.

    Args:
        items: Anything that can be iterated; with a length, the bar has an end.
        description: What the bar is headed with.
        show: Whether there is to be a bar; there is none either where the output is not
            a terminal.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield from items
        return
    yield from track(items, description=description, transient=True, console=console)
