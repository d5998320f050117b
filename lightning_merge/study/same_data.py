"""Whether data are still those that the finished pieces in a folder were made with."""

import hashlib
import json
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule

from lightning_merge.data.module import ClassificationDataModule
from lightning_merge.data.splits import digest_of_split
from lightning_merge.errors import DataError
from lightning_merge.files import read_json, write_json
from lightning_merge.recipe.build import Plain, build_data
from lightning_merge.study.store import Store

# The files beside the pieces that note the data, one for each data module.
_NOTES = "data-{}.json"

# What repetitions and ingredients differ in, while the files that they read are the same.
_DIVIDING = ("split_seed", "part")


def data_of(config: Plain, store: Store) -> LightningDataModule:
    """A data module of a piece in a store; one of ours has read its files.

    Raises:
        DataError: If they have other labels than when an earlier piece there was made, or
            more or fewer images.
    """
    data = build_data(config)
    if isinstance(data, ClassificationDataModule):
        data.prepare_data()
        data.setup()
        _check(data, config, store)
    return data


def take_notes(source: Store, target: Store) -> None:
    """Copies what a store notes of its data; a `DataError` where another notes otherwise."""
    for path in source.folder.glob(_NOTES.format("*")):
        theirs, ours = _noted(path), _noted(target.folder / path.name)
        if theirs is None:
            continue
        if ours is None:
            write_json(target.folder / path.name, theirs)
        elif ours["targets"] != theirs["targets"]:
            raise DataError(
                f"{source.folder} was made with data that have other labels, or more or fewer "
                f"images, than those of {target.folder}: leave one of them out"
            )


def _noted(path: Path) -> Plain | None:
    """What a file says of data; None if it is not there, or damaged."""
    try:
        found = read_json(path)
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and "targets" in found else None


def _check(data: ClassificationDataModule, config: Plain, store: Store) -> None:
    arguments = {**config.get("init_args", {})}
    alike = {**config, "init_args": {k: v for k, v in arguments.items() if k not in _DIVIDING}}
    name = hashlib.sha256(json.dumps(alike, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = store.folder / _NOTES.format(name)
    sets = (data.train_set, data.val_set, data.test_set)
    none = torch.empty(0)
    targets = [(none if one is None else one.source.targets).numpy() for one in sets]
    now = {"data": alike, "targets": digest_of_split(*targets)}
    before = _noted(path)
    if before is None:
        write_json(path, now)
    elif before["targets"] != now["targets"]:
        raise DataError(
            f"{store.folder}: {type(data).__name__} has other labels, or more or fewer images, "
            "than when earlier pieces there were made: put them back, or choose another --output"
        )
