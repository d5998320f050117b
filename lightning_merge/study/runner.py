"""Doing the work of a study, each piece at most once, beside others that do the same."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from lightning_merge.study.claims import Claims
from lightning_merge.study.kept_alignments import ElsewhereError
from lightning_merge.study.store import Store
from lightning_merge.study.work import Session, Work, execute

OnDone = Callable[[Work, dict[str, Any], bool], None]
"""Called with a piece, its result, and whether that had been stored before."""

PAUSE = 0.5
"""Seconds between two looks at pieces that other processes do."""


def run(
    works: Sequence[Work], store: Store, on_done: OnDone | None = None, progress: bool = True
) -> None:
    """Does what is not stored yet, in this process, and stores each result at once.

    Other processes may do the same with the same store: each piece is claimed before it is done,
    and what another process does is waited for.

    Args:
        works: The work, in an order in which it can be done.
        store: Has what is finished.
        on_done: Called after each piece.
        progress: Whether to show progress bars.

    Raises:
        MergeError: As the pieces do.
    """
    claims = Claims(store.folder)
    session = Session(progress, claims=claims)
    left = {work.key: work for work in works}
    while left:
        before = len(left)
        for work in list(left.values()):
            if not left.keys().isdisjoint(work.needs):
                continue
            done = do(work, store, session, claims)
            if done is None:
                continue
            del left[work.key]
            if on_done is not None:
                on_done(work, store.result(work.key), not done)
        if len(left) == before:
            time.sleep(PAUSE)


def do(work: Work, store: Store, session: Session, claims: Claims) -> bool | None:
    """Does a piece if nobody has done it or is doing it, and says whether it was done here.

    None if another process does it, or an alignment that it needs.
    """
    if work.key in store:
        return False
    if work.key in session.waiting and claims.held(session.waiting[work.key]):
        return None
    with claims.claimed(work.key) as ours:
        if not ours:
            return None
        damage = store.damage(work.key)
        if damage == "":
            return False
        if damage:
            warnings.warn(
                f"{store.folder / work.key}: {damage}; seed {work.seed}, {work.name} is done again",
                stacklevel=3,
            )
        store.make_room(work.key)
        try:
            execute(work, store, session)
        except ElsewhereError as elsewhere:
            session.waiting[work.key] = elsewhere.key
            return None
        return True
