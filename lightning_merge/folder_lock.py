"""One process at a time in a folder."""

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
# Ranks that a launcher starts beside the first one share its folder.
_RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID")
_CANNOT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EROFS)


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """While no other process works in a folder.

    The system takes the lock away from a process that ends, however it ends.

    Args:
        folder: The folder; made if it is not there, and gone afterwards if it stayed empty.

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
        # Whoever had it before may have removed it since it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        file.close()
    # A copy of this process, such as one that loads data, does not keep it.
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
