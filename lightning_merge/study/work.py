"""Going through the work of a study, of which some may be done already."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning_merge.study.plan import Task
from lightning_merge.study.store import Store

Report = Callable[[Task, dict[str, Any], bool], None]


def do_missing(
    work: Sequence[Task],
    store: Store,
    do: Callable[[Task], None],
    on_done: Report | None = None,
) -> None:
    """Does what the store does not hold.

    Args:
        work: The work, in an order in which it can be done.
        store: Holds what is finished.
        do: Does one piece, and puts its result into the store at once.
        on_done: Called with each piece, its result and whether that had been stored before.
    """
    for one in work:
        stored = one.key in store
        if not stored:
            do(one)
        if on_done is not None:
            on_done(one, store.result(one.key), stored)
