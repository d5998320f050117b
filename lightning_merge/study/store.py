"""Where a study keeps finished work, so that it can be stopped and resumed."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning_merge.checkpoint import read_checkpoint, write_checkpoint
from lightning_merge.errors import OutputExistsError
from lightning_merge.files import as_json, read_json, write_json, write_whole
from lightning_merge.provenance import provenance

SCHEMA = 2
"""Grows when keys or files change so that earlier work cannot be resumed."""

_WEIGHTS = "weights.ckpt"
_RESULT = "result.json"
_TRAINING = "training.ckpt"
# What a damaged JSON file raises when it is read, or when it does not hold what it should.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError)


class Store:
    """A folder with one subfolder for each finished piece of work, named by its key.

    A piece counts as finished when its `result.json` is there, which is written last, and when
    it and the files that it names have the digests under which they were put; what was damaged
    is done again. The folder is made when something is put into it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._sound: dict[str, tuple[int, ...]] = {}

    def check_schema(self) -> None:
        """Refuses to resume work that an earlier or later version of this package wrote."""
        if not any(path.is_dir() for path in self.folder.glob("*")):
            return
        instead = "choose another --output, or remove that folder to do it again"
        try:
            found = int(read_json(self.folder / "schema.json")["schema"])
        except FileNotFoundError:
            # It is written when the first piece is finished; the first format had no such file,
            # and its results list no files. One that got lost says nothing against the pieces.
            results = list(self.folder.glob(f"*/{_RESULT}"))
            found = 1 if results and not any(map(_lists_files, results)) else SCHEMA
        except _UNREADABLE as error:
            raise OutputExistsError(
                f"{self.folder} holds work, and its schema.json cannot be read: {instead}"
            ) from error
        if found != SCHEMA:
            raise OutputExistsError(
                f"{self.folder} holds work in the format {found}, and this version goes on with "
                f"format {SCHEMA}: {instead}"
            )

    def __contains__(self, key: str) -> bool:
        return self.damage(key) == ""

    def damage(self, key: str) -> str | None:
        """What is wrong with a piece, in words: empty if nothing is, None if it is not there."""
        path = self.folder / key / _RESULT
        if path.parent.is_file():
            return "is a file"
        if not path.is_file():
            return None if not (self.folder / key / _WEIGHTS).is_file() else "was not finished"
        stamp = self._stamp(key)
        if self._sound.get(key) == stamp:
            return ""
        try:
            stored = read_json(path)
            parts = [stored["result"], stored["made_by"], stored["files"]]
            # Earlier versions did not note the key.
            parts += [stored["key"]] if "key" in stored else []
            whole, files = stored["digest"] == _digest_of(*parts), dict(stored["files"])
            other = stored.get("key", key) != key
        except PermissionError:
            # Nothing is wrong with it, and doing it again would not make it readable.
            raise
        except _UNREADABLE:
            return f"{_RESULT} cannot be read"
        if not whole:
            return f"{_RESULT} was changed"
        if other:
            return f"{_RESULT} is that of another piece"
        for name, expected in files.items():
            file = self.folder / key / name
            if not file.is_file():
                return f"{name} is missing"
            if _file_digest(file) != expected:
                return f"{name} was changed"
        self._sound[key] = stamp
        return ""

    def make_room(self, key: str) -> None:
        """Removes folders in the places of a piece's files, and a file in that of its folder."""
        piece = self.folder / key
        if not piece.is_dir():
            piece.unlink(missing_ok=True)
        for name in (_WEIGHTS, _RESULT, _TRAINING):
            if (piece / name).is_dir():
                _remove(piece / name)

    def put(
        self, key: str, result: Mapping[str, Any], content: Mapping[str, Any] | None = None
    ) -> None:
        """Keeps a piece's result, with how it was made, and its checkpoint, if it has one."""
        if not (self.folder / "schema.json").is_file():
            write_json(self.folder / "schema.json", {"schema": SCHEMA})
        files = {}
        if content is not None:
            write_checkpoint(self.weights(key), content)
            files[_WEIGHTS] = _file_digest(self.weights(key))
        else:
            self.weights(key).unlink(missing_ok=True)
        # As it will be read again: NaN is null, tuples are lists.
        plain, made_by = as_json(result), as_json(provenance())
        parts = {"result": plain, "made_by": made_by, "files": files, "key": key}
        digest = _digest_of(*parts.values())
        write_json(self.folder / key / _RESULT, {**parts, "digest": digest})
        self.end_training(key)

    def result(self, key: str) -> dict[str, Any]:
        """The result of a finished piece."""
        return read_json(self.folder / key / _RESULT)["result"]

    def made_by(self, key: str) -> dict[str, Any]:
        """How a finished piece was made (`provenance`)."""
        return read_json(self.folder / key / _RESULT)["made_by"]

    def weights(self, key: str) -> Path:
        """Where a piece's checkpoint lies, or would."""
        return self.folder / key / _WEIGHTS

    def training(self, key: str) -> Path:
        """Where the state of a training that has not ended lies, or would."""
        return self.folder / key / _TRAINING

    def end_training(self, key: str) -> None:
        """Removes the state of a training that has ended, if there is one."""
        _remove(self.training(key))

    def state(self, key: str) -> dict[str, Any]:
        """The state dict in a piece's checkpoint."""
        return read_checkpoint(self.weights(key)).state_dict

    def take(self, other: "Store", key: str) -> None:
        """Copies a finished piece of another store, byte for byte."""
        if not (self.folder / "schema.json").is_file():
            write_json(self.folder / "schema.json", {"schema": SCHEMA})
        self.make_room(key)
        files = read_json(other.folder / key / _RESULT)["files"]
        # The result comes last: with it the piece is finished.
        for name in (*files, _RESULT):
            source = other.folder / key / name
            write_whole(self.folder / key / name, partial(shutil.copyfile, source))

    def export(self, key: str, path: Path) -> None:
        """Copies a piece's checkpoint to where a user looks for it."""
        write_whole(path, lambda partial: shutil.copyfile(self.weights(key), partial))

    def _stamp(self, key: str) -> tuple[int, ...]:
        stats = []
        for path in sorted((self.folder / key).iterdir()):
            # Another process's temporary file, or a link to nowhere.
            with contextlib.suppress(FileNotFoundError):
                stats.append(path.stat())
        return tuple(number for one in stats for number in (one.st_size, one.st_mtime_ns))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _lists_files(path: Path) -> bool:
    try:
        return "files" in read_json(path)
    except _UNREADABLE:
        return False


def _digest_of(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
