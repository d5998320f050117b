"""Claims on pieces of work, so that several processes share a store without doing one twice."""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lightning_merge.processes import begun, here

BEAT = 5.0
"""Seconds from one beat of a claim's heart to the next."""
PATIENCE = 90.0
"""Seconds without a beat after which a claim counts as that of a dead process. More than a network
file system takes to show another machine's beat (60 at most, as they are set up ordinarily)."""

_NAME = re.compile(r"(?P<key>.+)\.(?P<turn>\d+)\.claim$")


class _Seen(NamedTuple):
    """A claim as it was found: which turn, whose, its last beat, and when we first saw that."""

    turn: int
    owner: str
    beat: int
    since: float


class Claims:
    """The claims in one folder, a file each.

    A claim is made by creating `KEY.0.claim`, which one process alone can do. Its owner touches it
    every `beat` seconds. One that has not been touched for `patience` seconds, or whose process on
    this machine has ended, is taken over by creating the next turn's, `KEY.1.claim`: again one
    process alone can. Beats are compared with each other and never with a clock: machines need not
    agree on the time.
    """

    def __init__(self, folder: Path, beat: float = BEAT, patience: float = PATIENCE) -> None:
        self.folder, self.beat, self.patience = folder, beat, patience
        self._seen: dict[str, _Seen] = {}

    @contextmanager
    def claimed(self, key: str) -> Iterator[bool]:
        """Whether a piece is this process's to do, as long as the context lasts."""
        turn = self._take(key)
        if turn is None:
            yield False
            return
        ended = threading.Event()
        heart = threading.Thread(target=self._live, args=(key, turn, ended), daemon=True)
        heart.start()
        try:
            yield True
        finally:
            ended.set()
            heart.join()
            # The dead one's, which nobody else may remove, and ours last: whoever is beaten to a
            # piece withdraws what it made itself, and must find it there.
            for past in range(max(turn - 1, 0), turn + 1):
                self._path(key, past).unlink(missing_ok=True)

    def held(self, key: str) -> bool:
        """Whether another process does a piece."""
        found = self._look(key)
        return found is not None and not self._is_dead(found)

    def clear(self, key: str) -> None:
        """Removes what killed processes left of the claims on a piece that is finished."""
        for turn in self._turns(key):
            self._path(key, turn).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes the claims, on any piece, of processes on this machine that have ended."""
        named = (_NAME.match(path.name) for path in self.folder.glob("*.claim"))
        for key in {match["key"] for match in named if match}:
            while (found := self._look(key)) is not None and self._is_dead(found):
                with self.claimed(key):
                    pass

    def _take(self, key: str) -> int | None:
        """The turn that is ours now; None if another process has the piece."""
        found = self._look(key)
        if found is not None and not self._is_dead(found):
            return None
        turn = 0 if found is None else found.turn + 1
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._path(key, turn).open("x", encoding="utf-8") as file:
                json.dump([*here(), os.getpid(), begun(os.getpid()), time.monotonic_ns()], file)
        except FileExistsError:
            return None
        except OSError as error:
            # The disk is full: an empty claim would be taken for one that is just being made.
            self._path(key, turn).unlink(missing_ok=True)
            error.filename = str(self._path(key, turn))
            raise
        # Meanwhile the dead one's successor may have ended, and another have begun anew: only while
        # the dead one's claim is there does the next turn's exclude everybody else.
        later = any(other > turn for other in self._turns(key))
        if later or (found is not None and self._owner(key, found.turn) != found.owner):
            self._path(key, turn).unlink(missing_ok=True)
            return None
        return turn

    def _look(self, key: str) -> _Seen | None:
        """The last turn's claim, and since when it has been as it is."""
        turn = max(self._turns(key), default=None)
        if turn is None:
            self._seen.pop(key, None)
            return None
        try:
            # Opening a file makes a network file system ask for its present state.
            with self._path(key, turn).open(encoding="utf-8", errors="replace") as file:
                owner, beat = file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return self._look(key)
        known = self._seen.get(key)
        if known is None or known[:3] != (turn, owner, beat):
            known = self._seen[key] = _Seen(turn, owner, beat, time.monotonic())
        return known

    def _is_dead(self, found: _Seen) -> bool:
        if time.monotonic() - found.since > self.patience:
            return True
        try:
            machine, space, process, start, _ = json.loads(found.owner)
            return [machine, space] == here() and begun(process) != start
        except (ValueError, TypeError, RecursionError):
            # Just made and not written yet, or damaged.
            return False

    def _owner(self, key: str, turn: int) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return self._path(key, turn).read_text(encoding="utf-8", errors="replace")
        return None

    def _turns(self, key: str) -> list[int]:
        matches = (_NAME.match(path.name) for path in self.folder.glob(f"{key}.*.claim"))
        return [int(found["turn"]) for found in matches if found and found["key"] == key]

    def _path(self, key: str, turn: int) -> Path:
        return self.folder / f"{key}.{turn}.claim"

    def _live(self, key: str, turn: int, ended: threading.Event) -> None:
        while not ended.wait(self.beat):
            # The time is the file system's own.
            with contextlib.suppress(OSError):
                os.utime(self._path(key, turn))
