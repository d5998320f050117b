"""Files that are whole or not there: written beside their place, then renamed onto it."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_merge.errors import OutputExistsError


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` fill a temporary file and renames it to `path` when that succeeded.

    Args:
        path: Where the file is to be; its folder is made.
        write: Called once with the temporary path, in the same folder and with the same
            ending as `path`.

    Returns:
        `path`, as a `Path`. An interrupted or failing `write` leaves `path` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Writes `text` as UTF-8, whole or not at all."""
    return write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """Writes `value` as indented JSON, whole or not at all; NaN and infinity become null."""
    return write_text(path, _json(value) + "\n")


def as_json(value: Any) -> Any:
    """A value as `read_json` gives it after `write_json`."""
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
    """Writes one line a row; the columns are those of all rows, in order of appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, text.getvalue())


def claim_folder(folder: str | Path, results: Iterable[str], overwrite: bool) -> Path:
    """Makes an output folder, and refuses one that holds results already.

    Args:
        folder: The folder that results will be written to.
        results: Names of the files that would be written over.
        overwrite: Whether that is allowed.

    Returns:
        `folder`, as a `Path` that exists.

    Raises:
        OutputExistsError: If one of `results` is there and `overwrite` is false, or if
            `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file: give --output a folder")
    held = [name for name in results if (folder / name).exists()]
    if held and not overwrite:
        raise OutputExistsError(
            f"{folder} already holds {held[0]}: choose another --output, or add --overwrite"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder
