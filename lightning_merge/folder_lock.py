"""A lock that lets only one process at a time work in a folder."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lightning_merge.errors import OutputExistsError

_NAME = ".lock"
# Other ranks that a launcher starts share the folder of the first one.
_RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID")
_CANNOT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EROFS)


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Locks a folder against other processes.

    The operating system releases the lock when the process ends, however it ends.

    Args:
        folder: The folder; created if missing, and removed afterwards if it stayed empty.

    Raises:
        OutputExistsError: If another process works in it; the message names that process.
    """
    if any(os.environ.get(rank, "0") != "0" for rank in _RANKS):
        yield
        return
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file: give --output a folder")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    file = _locked(folder)
    try:
        yield
    finally:
        if file is not None:
            (folder / _NAME).unlink(missing_ok=True)
            file.close()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _locked(folder: Path) -> IO[str] | None:
    path = folder / _NAME
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                raise OutputExistsError(
                    f"{folder} is in use by {_holder(file)}: wait until it has ended, or choose "
                    "another --output"
                ) from error
        except OSError as error:
            file.close()
            if error.errno not in _CANNOT:
                raise
            warnings.warn(
                f"{folder} is on a file system without locks: start nothing else with this output",
                stacklevel=4,
            )
            return None
        # The process that had the lock may have removed the file since it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        file.close()
    # A forked process, such as a data loader's worker, does not keep the lock.
    os.register_at_fork(after_in_child=file.close)
    file.truncate(0)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:300]
    json.dump([os.getpid(), platform.node(), time.strftime("%F %T"), command], file)
    file.flush()
    return file


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        process, machine, since, command = json.load(file)
    except ValueError:
        return "another process"
    return f"process {process} on {machine}, since {since} ({command})"
