"""The average of weight files, tensor by tensor from memory maps, without torch where it can be.

No more than a few blocks of numbers are in memory while safetensors are written; other formats
need the result, once. The arithmetic is that of `average`, bit for bit.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import numpy as np

from lightning_merge.aggregate.files_to_average import FilesToAverage
from lightning_merge.files import is_full, write_json, write_whole, written_together
from lightning_merge.number_types import Raw
from lightning_merge.safetensors_file import layout
from lightning_merge.stored_state import INDEX

Progress = Callable[[int, int], object]
"""Called with the bytes that were read, and those that there are to read."""

_MOST_THREADS = 8
_SYNC_SECONDS = 0.05


def write_average(
    files: FilesToAverage,
    output: Path,
    metadata: Mapping[str, str],
    progress: Progress | None = None,
) -> None:
    """Writes the average as safetensors: one file, or several and their index.

    `output` is a `.safetensors`, or an `.index.json` for shards beside it, which are those of the
    first file; `metadata` are notes for the header.
    """
    advance = _counter(files, progress)
    if not output.name.endswith(INDEX):
        _write_one(files, list(files.entries), output, metadata, advance)
        return
    shards: dict[str, list[str]] = {}
    for name, file in _shard_names(files, output).items():
        shards.setdefault(file, []).append(name)
    total = sum(map(files.bytes_of, files.entries))
    weight_map = {name: file for file, names in shards.items() for name in names}
    with written_together():
        for file, names in shards.items():
            _write_one(files, names, output.parent / file, metadata, advance)
        write_json(output, {"metadata": {"total_size": total}, "weight_map": weight_map})


def shard_files(files: FilesToAverage, output: Path) -> list[Path]:
    """The files that `write_average` writes for an index, beside it."""
    return [output.parent / file for file in dict.fromkeys(_shard_names(files, output).values())]


def _shard_names(files: FilesToAverage, output: Path) -> dict[str, str]:
    given = files.first_shards()
    order = sorted(set(given.values()))
    stem = output.name.removesuffix(INDEX).removesuffix(".safetensors")
    numbered = {
        file: f"{stem}-{position:05d}-of-{len(order):05d}.safetensors"
        for position, file in enumerate(order, start=1)
    }
    return {name: numbered[file] for name, file in given.items()}


def averaged_arrays(files: FilesToAverage, progress: Progress | None = None) -> dict[str, Raw]:
    """The average's bytes by name, in memory."""
    advance = _counter(files, progress)
    result: dict[str, Raw] = {
        name: np.empty(files.bytes_of(name), np.uint8) for name in files.entries
    }

    def put(name: str, begin: int, part: Raw) -> None:
        result[name][begin : begin + len(part)] = part

    _run(files, list(files.entries), put, advance)
    return result


def _write_one(
    files: FilesToAverage,
    names: Sequence[str],
    output: Path,
    metadata: Mapping[str, str],
    advance: Callable[[str, int], None],
) -> None:
    header, begins, size = layout({name: files.entries[name] for name in names}, metadata)

    def write(partial: Path) -> None:
        target = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            _reserve(target, size)
            _put(target, memoryview(header), 0)
            with _syncing(target):
                _run(
                    files,
                    names,
                    lambda name, begin, part: _put(target, part.data, begins[name] + begin),
                    advance,
                )
        finally:
            os.close(target)

    write_whole(output, write)


def _reserve(target: int, size: int) -> None:
    # A full disk is found out before the work; some file systems cannot say.
    try:
        os.posix_fallocate(target, 0, size)
    except (AttributeError, OSError) as error:
        if is_full(error):
            raise
        os.truncate(target, size)


def _put(target: int, part: memoryview, begin: int) -> None:
    while part:
        written = os.pwrite(target, part, begin)
        part, begin = part[written:], begin + written


@contextmanager
def _syncing(target: int) -> Iterator[None]:
    """Sends to the disk what is written, while more is computed: the last sync is then short."""
    done = Event()

    def sync() -> None:
        while not done.wait(_SYNC_SECONDS):
            getattr(os, "fdatasync", os.fsync)(target)

    with ThreadPoolExecutor(1) as pool:
        syncing = pool.submit(sync)
        try:
            yield
        finally:
            done.set()
        # The system reports what it could not write once: the last sync would not see it.
        syncing.result()


def _run(
    files: FilesToAverage,
    names: Sequence[str],
    put: Callable[[str, int, Raw], None],
    advance: Callable[[str, int], None],
) -> None:
    def finish(name: str, part: Callable[[], Iterator[tuple[int, Raw]]]) -> tuple[str, int]:
        written = 0
        for begin, piece in part():
            put(name, begin, piece)
            written += len(piece)
        return name, written

    threads = _threads()
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[tuple[str, int]]] = deque()
    try:
        for name in names:
            for part in files.work_on(name):
                waiting.append(pool.submit(finish, name, part))
                # What a task needs may be in memory: only so many are prepared.
                if len(waiting) > 4 * threads:
                    advance(*waiting.popleft().result())
        while waiting:
            advance(*waiting.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)


def _threads() -> int:
    mine = getattr(os, "sched_getaffinity", None)
    count = len(mine(0)) if mine else os.cpu_count() or 1
    return min(count, _MOST_THREADS)


def _counter(files: FilesToAverage, progress: Progress | None) -> Callable[[str, int], None]:
    read = {name: files.read_of(name) for name in files.entries}
    total, done = sum(read.values()), 0.0

    def advance(name: str, written: int) -> None:
        nonlocal done
        # Of an empty tensor there is nothing to read.
        done += read[name] * written / max(1, files.bytes_of(name))
        if progress is not None:
            progress(int(done), total)

    return advance
