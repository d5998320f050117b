"""Where the pieces of a study are done: in this process, or by workers of a library."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_merge.errors import ConfigError, MergeError
from lightning_merge.registry import Registry
from lightning_merge.study.claims import Claims
from lightning_merge.study.runner import PAUSE, OnDone, do
from lightning_merge.study.store import Store
from lightning_merge.study.work import Session, Work


class Executor(ABC):
    """Does the pieces of a study that are not finished.

    One is registered under the name that `--executor` takes; its arguments are
    `--executor_options`.

    Attributes:
        needs: A package that it needs, and the extra of this package that installs it.
    """

    needs: tuple[str, str] | None = None

    def check(self) -> None:
        """Checks that it can run; a `ConfigError` if a package is missing."""
        if self.needs is not None and find_spec(self.needs[0]) is None:
            package, extra = self.needs
            raise ConfigError(
                f"{package} is not installed: pip install 'lightning-merge[{extra}]', or choose "
                "another --executor"
            )

    @abstractmethod
    def run(
        self, works: Sequence[Work], store: Store, on_done: OnDone | None, progress: bool
    ) -> None:
        """Does what is not stored yet.

        Args:
            works: The work, in an order in which it can be done.
            store: Has what is finished, and gets what is done.
            on_done: Called after each piece.
            progress: Whether to show progress bars.

        Raises:
            MergeError: As the pieces do.
        """


executors: Registry[type[Executor]] = Registry("executors", "lightning_merge.study.executors")


def executor_of(name: str, options: Mapping[str, Any] | None = None) -> Executor:
    """An executor by its name and options."""
    kind = executors.get(name).value
    try:
        return kind(**(options or {}))
    except TypeError as error:
        reason = str(error).rpartition("()")[2].strip()
        raise ConfigError(f"--executor_options of {name}: {reason}; leave it out") from error


def work_alone(work: Work, folder: Path) -> str:
    """What a worker does: one piece, if nobody else has done it; what another does it waits for.

    Returns:
        The message of an error that a user can mend; empty where the piece is finished.
    """
    store, claims = Store(folder), Claims(folder)
    session = Session(progress=False, claims=claims)
    try:
        while do(work, store, session, claims) is None:
            time.sleep(PAUSE)
    except MergeError as error:
        return str(error)
    return ""


def report_stored(works: Sequence[Work], store: Store, on_done: OnDone | None) -> list[Work]:
    """Reports what is finished already, and returns the rest in its order."""
    left = []
    for work in works:
        if work.key not in store:
            left.append(work)
        elif on_done is not None:
            on_done(work, store.result(work.key), True)
    return left


def report_done(work: Work, message: str, store: Store, on_done: OnDone | None) -> None:
    """Reports a piece that a worker has ended; a `MergeError` if there is a message."""
    if message:
        raise MergeError(f"seed {work.seed}, {work.name}: {message}")
    if on_done is not None:
        on_done(work, store.result(work.key), False)


def died(work: Work, times: int) -> MergeError:
    """The error of a piece whose workers die again and again."""
    return MergeError(
        f"seed {work.seed}, {work.name}: its worker died {times} times, perhaps for want of "
        "memory or time: give each piece more with --executor_options"
    )
