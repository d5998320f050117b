"""Doing the work of a study, each piece at most once."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from lightning_merge.study.store import Store
from lightning_merge.study.work import Session, Work, execute

OnDone = Callable[[Work, dict[str, Any], bool], None]
"""Called with a piece, its result, and whether that had been stored before."""


def run(
    works: Sequence[Work], store: Store, on_done: OnDone | None = None, progress: bool = True
) -> None:
    """Does what is not stored yet, in this process, and stores each result at once.

    Args:
        works: The work, in an order in which it can be done.
        store: Has what is finished.
        on_done: Called after each piece.
        progress: Whether to show progress bars.

    Raises:
        MergeError: As the pieces do.
    """
    session = Session(progress)
    for work in works:
        damage = store.damage(work.key)
        if damage:
            warnings.warn(
                f"{store.folder / work.key}: {damage}; seed {work.seed}, {work.name} is done again",
                stacklevel=2,
            )
        if damage != "":
            execute(work, store, session)
        if on_done is not None:
            on_done(work, store.result(work.key), damage == "")
