"""Finds what `merge`, `compare` or `study` stored of a merged checkpoint, beside or above it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_merge.errors import ConfigError
from lightning_merge.files import read_json
from lightning_merge.measure.outcome import file_name


def result_of_merge(checkpoint: str | Path, given: str | Path | None = None) -> Any:
    """What is known of a merge, under the names of `result.json`; None where nothing is.

    That is `result.json` beside a `merged.ckpt`; for a file below the `merges` folder of a
    comparison or study it is the entry of that name in `results.json` above. `given` is a file to
    read instead.
    """
    checkpoint = Path(checkpoint)
    path = Path(given) if given is not None else _beside_or_above(checkpoint)
    if path is None:
        return None
    try:
        found = read_json(path)
        # As `merge` writes it, or damaged so that the card's writer will say so.
        if not isinstance(found, Mapping) or "measurements" not in found:
            return found
        row = _row(found, checkpoint)
        return None if row is None else _entry(found, row)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: give --result another file") from error
    except (AttributeError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): give --result another file") from error


def _beside_or_above(checkpoint: Path) -> Path | None:
    folder = checkpoint.absolute().parent
    places = [folder / "result.json"]
    places += [
        one.parent / "results.json" for one in (folder, *folder.parents) if one.name == "merges"
    ]
    return next((path for path in places if path.is_file()), None)


def _row(found: Mapping[str, Any], checkpoint: Path) -> Mapping[str, Any] | None:
    """The merge's measurement: the file has its name, the folders its seed and pool size."""
    rows = [
        row
        for row in found["measurements"]
        if row.get("kind") == "merge" and file_name(str(row["method"])) == checkpoint.stem
    ]
    parts = checkpoint.absolute().parent.parts
    # Folders above are named as people like.
    below = parts[::-1].index("merges") if "merges" in parts else len(parts)
    for part in parts[len(parts) - below :]:
        for pattern, key in ((r"seed(\d+)", "seed"), (r"(\d+)-networks", "pool_size")):
            match = re.fullmatch(pattern, part)
            if match:
                rows = [row for row in rows if row.get(key) == int(match[1])]
    return rows[0] if len(rows) == 1 else None


def _entry(found: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    config = found.get("config") or {}
    recipes = [one for one in config.get("recipes") or () if one.get("name") == row["method"]]
    part = {
        "recipe": recipes[0] if recipes else {"name": row["method"]},
        "data": config.get("data"),
    }
    return {
        **{name: found[name] for name in ("command", "versions", "split_hash") if name in found},
        "config": part,
        "ingredients": dict(found.get("ingredients") or {}),
        "measurement": dict(row),
    }
