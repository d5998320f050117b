"""Atomic file writes: to a temporary file beside the target, then renamed onto it."""

import contextlib
import csv
import errno
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from lightning_merge.errors import OutputExistsError
from lightning_merge.processes import begun, here

_numbers = itertools.count()
_PARTIAL = re.compile(r"\.(\d+)-(?:m([0-9a-f]{8})-)?.*\.partial(\..*)?$")
# Temporary files that this process is writing at this moment, in any of its threads.
_writing: set[str] = set()
# Seconds after which another machine's temporary file counts as left behind.
_LONG = 24 * 3600
# Files that wait for their names (`written_together`): the temporary one of each.
_waiting: ContextVar[dict[Path, Path] | None] = ContextVar("_waiting", default=None)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_FULL_DISKS = ("file write failed", "PytorchStreamWriter", "unexpected pos", "iostream error")


def is_full(error: BaseException) -> bool:
    """Whether an error says that a file did not fit: of the file system, or of torch's writer."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(mark in str(error) for mark in _OF_FULL_DISKS)


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` fill a temporary file, and renames it to `path` on success.

    The content is on the disk before the rename, so a loss of power leaves the old file or the new
    one, and an interrupted or failing `write` the old one. A link stays a link (the file that it
    points to is replaced), and the new file takes over the permissions of the one it replaces. The
    temporary path is in the same folder and has the same ending as `path`, whose folder is created;
    only regular files are replaced.
    """
    path = Path(path)
    place = Path(os.path.realpath(path))
    mode = None
    with contextlib.suppress(FileNotFoundError):
        there = place.stat()
        if not stat.S_ISREG(there.st_mode):
            raise OutputExistsError(f"{path} is there and is no file; choose another path")
        mode = stat.S_IMODE(there.st_mode)
    made = [folder for folder in place.parents if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    name = f".{os.getpid()}-{_machine()}-{next(_numbers)}.partial{path.suffix[:32]}"
    partial = place.with_name(name)
    with written_together() as waiting:
        _writing.add(name)
        _forget(waiting.pop(place, None))
        waiting[place] = partial
        try:
            write(partial)
            if mode is not None:
                partial.chmod(mode)
            _to_disk(partial)
        except BaseException as error:
            _forget(waiting.pop(place))
            if isinstance(error, OSError) and error.errno is not None:
                if error.filename in (None, str(partial)):
                    error.filename = str(path)
            elif isinstance(error, RuntimeError) and is_full(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise
    for folder in (one.parent for one in made):
        _to_disk(folder)
    return path


@contextmanager
def written_together() -> Iterator[dict[Path, Path]]:
    """Files that this thread writes meanwhile get their names together at the end, or none does.

    The temporary file of each is yielded by the path that it will have, links resolved.
    """
    outer = _waiting.get()
    if outer is not None:
        yield outer
        return
    waiting: dict[Path, Path] = {}
    token = _waiting.set(waiting)
    try:
        yield waiting
        for place, partial in waiting.items():
            try:
                os.replace(partial, place)
            except OSError as error:
                error.filename = str(place)
                raise
        for folder in {place.parent for place in waiting}:
            _to_disk(folder)
    finally:
        _waiting.reset(token)
        for partial in waiting.values():
            _forget(partial)


def _forget(partial: Path | None) -> None:
    if partial is not None:
        partial.unlink(missing_ok=True)
        _writing.discard(partial.name)


def _to_disk(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        # Some file systems cannot sync a folder.
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(opened)
    finally:
        os.close(opened)


def write_text(path: str | Path, text: str) -> Path:
    """Writes `text` as UTF-8, whole or not at all."""
    # Names may come from an untrusted file, and need not be valid Unicode.
    content = text.encode("utf-8", "backslashreplace")
    return write_whole(path, lambda partial: partial.write_bytes(content))


def write_json(path: str | Path, value: Any) -> Path:
    """Writes `value` as indented JSON, whole or not at all; NaN and infinity become null."""
    return write_text(path, _json(value) + "\n")


def as_json(value: Any) -> Any:
    """The value that `read_json` returns after `write_json`."""
    return json.loads(_json(value))


def _json(value: Any) -> str:
    return json.dumps(_finite(value), indent=2, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_json(path: str | Path) -> Any:
    """Reads what `write_json` wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes one line per row; the columns are those of all rows, in order of appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, text.getvalue())


def sweep(folder: str | Path) -> None:
    """Removes the half-written files that killed processes left in a folder."""
    for path in Path(folder).glob(".*-*.partial*"):
        found = _PARTIAL.match(path.name)
        if found is None or _is_being_written(path, int(found[1]), found[2]):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_being_written(path: Path, process: int, machine: str | None) -> bool:
    if machine is not None and f"m{machine}" != _machine():
        # Its processes cannot be seen from here.
        with contextlib.suppress(FileNotFoundError):
            return time.time() - path.lstat().st_mtime < _LONG
        return False
    if process == os.getpid():
        # An earlier process may have had the same number.
        return path.name in _writing
    return begun(process) is not None


@cache
def _machine() -> str:
    return "m" + hashlib.sha256("".join(here()).encode()).hexdigest()[:8]


def check_claim(folder: str | Path, results: Iterable[str], overwrite: bool) -> None:
    """Rejects an output folder that already contains results; nothing is created.

    They are named, by names or patterns such as `*.png`, by the files that would be written over,
    unless `overwrite` allows it.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file: give --output a folder")
    held = [path.name for name in results for path in sorted(folder.glob(name))]
    if held and not overwrite:
        raise OutputExistsError(
            f"{folder} already holds {held[0]}: choose another --output, or add --overwrite"
        )


def claim_folder(folder: str | Path, results: Iterable[str], overwrite: bool) -> Path:
    """Creates an output folder after `check_claim`, and returns it as a `Path`.

    Half-written files of killed processes are removed from it.
    """
    check_claim(folder, results, overwrite)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    return folder
