"""Locks on a folder: of all that work in it together, of one alone, and turns of a moment."""

import contextlib
import errno
import fcntl
import functools
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from lightning_merge.errors import OutputExistsError
from lightning_merge.processes import begun

P = ParamSpec("P")
T = TypeVar("T")

_NAME = ".lock"
_TURN = ".turn"
# Other ranks that a launcher starts share the folder of the first one.
_RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID")
_CANNOT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EROFS)
# How often a shared lock is tried again: one that is leaving has it alone for a moment.
_TRIES = 20


class FolderLock:
    """A lock that this process has on a folder.

    There is no locked file on a file system without locks, and in further ranks.
    """

    def __init__(self, folder: Path, file: IO[str] | None) -> None:
        self.folder, self.file = folder, file

    def check_alone(self) -> None:
        """Refuses to go on while another process works in the folder, and names it."""
        if self.file is not None:
            if not _flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                raise _in_use(self.folder, self.file, other_than=os.getpid())
            fcntl.flock(self.file, fcntl.LOCK_SH)

    def _leave(self) -> None:
        if self.file is not None:
            if _flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                (self.folder / _NAME).unlink(missing_ok=True)
            self.file.close()


@contextmanager
def lock_folder(folder: str | Path, shared: bool = False) -> Iterator[FolderLock]:
    """Locks a folder against other processes; an error names one that works in it.

    The operating system releases the lock when the process ends, however it ends. The folder is
    created if missing, and removed afterwards if it stayed empty. Others may work there at the same
    time where all have it `shared`.
    """
    folder = Path(folder)
    if _is_further_rank():
        yield FolderLock(folder, None)
        return
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file: give --output a folder")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder, _locked(folder, shared))
    try:
        yield lock
    finally:
        lock._leave()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def alone_in_output(verb: Callable[P, T]) -> Callable[P, T]:
    """Lets a function run only while no other process works in its folder `output`, if any."""

    @functools.wraps(verb)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        output: Any = kwargs.get("output")
        with contextlib.nullcontext() if output is None else lock_folder(output):
            return verb(*args, **kwargs)

    return alone


@contextmanager
def turn_in_folder(folder: Path) -> Iterator[None]:
    """Waits until no other process has its turn in a folder, and has it meanwhile."""
    if _is_further_rank():
        yield
        return
    path = folder / _TURN
    while True:
        file = path.open("a+")
        try:
            _flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _CANNOT:
                file.close()
                raise
            # `lock_folder` has warned.
            break
        if _is_there(path, file):
            break
        file.close()
    os.register_at_fork(after_in_child=file.close)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _is_further_rank() -> bool:
    return any(os.environ.get(rank, "0") != "0" for rank in _RANKS)


def _locked(folder: Path, shared: bool) -> IO[str] | None:
    path = folder / _NAME
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    tries = _TRIES if shared else 1
    while True:
        file = path.open("a+")
        try:
            if not _flock(file, how | fcntl.LOCK_NB):
                with file:
                    tries -= 1
                    if not tries:
                        raise _in_use(folder, file)
                time.sleep(0.05)
                continue
        except OSError as error:
            file.close()
            if error.errno not in _CANNOT:
                raise
            warnings.warn(
                f"{folder} is on a file system without locks: start nothing else with this output",
                stacklevel=5,
            )
            return None
        if _is_there(path, file):
            break
        file.close()
    # A forked process, such as a data loader's worker, does not keep the lock.
    os.register_at_fork(after_in_child=file.close)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:300]
    line = [os.getpid(), platform.node(), time.strftime("%F %T"), command]
    # It is read where the folder is in use, and not needed: the disk may be full.
    with contextlib.suppress(OSError):
        os.write(file.fileno(), (json.dumps(line) + "\n").encode())
    return file


def _flock(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True


def _is_there(path: Path, file: IO[str]) -> bool:
    """Whether a locked file is still at its path: its last owner may have removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _in_use(folder: Path, file: IO[str], other_than: int | None = None) -> OutputExistsError:
    holder = _holder(file, other_than)
    return OutputExistsError(
        f"{folder} is in use by {holder}: wait until it has ended, or choose another --output"
    )


def _holder(file: IO[str], other_than: int | None) -> str:
    """The last process that came and is not known to have ended."""
    file.seek(0)
    found = "another process"
    for line in file:
        try:
            process, machine, since, command = json.loads(line)
            ended = machine == platform.node() and begun(process) is None
        except (ValueError, TypeError):
            continue
        if not ended and process != other_than:
            found = f"process {process} on {machine}, since {since} ({command})"
    return found
