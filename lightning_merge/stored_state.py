"""A state dict that stays on disk: types and shapes are known, numbers are read on demand."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_merge.errors import CheckpointError
from lightning_merge.number_types import Raw
from lightning_merge.safetensors_file import (
    MOST_TIMES,
    SLACK,
    SafetensorsFile,
    without_duplicates,
)
from lightning_merge.tensor_table import Entry
from lightning_merge.torch_file import check_kind

INDEX = ".index.json"
_LARGEST_INDEX = 64 << 20
# The file names that the Hugging Face libraries look for in a folder, in their order.
_MODELS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# As the Hugging Face libraries call the files of a network that lies in several.
_PART = re.compile(r"-\d{5}-of-(\d{5})\.(safetensors|bin)$")
SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


@dataclass(frozen=True)
class StoredState:
    """An open file, or several that an index joins.

    Attributes:
        path: The file or the index.
        table: Type and shape of each tensor.
        raw: Returns the bytes of a tensor, from a memory map if the format allows it.
        extra: Entries of the state dict that are not tensors, such as `_extra_state`.
        content: The file's other entries (`hyper_parameters`, `epoch`, ...).
        shards: For a sharded network, the file name of each tensor; empty for a single file.
        notes: The metadata in the header of safetensors, of shards in that of the first.
    """

    path: Path
    table: dict[str, Entry]
    raw: Callable[[str], Raw]
    extra: dict[str, Any] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def found_file(path: str | Path) -> Path:
    """The file that a path refers to: itself, or the one network in a folder."""
    path = Path(path)
    if path.is_dir():
        files = files_in(path)
        if len(files) != 1:
            what = f"{len(files)} checkpoints" if files else "no checkpoint"
            raise CheckpointError(f"{path} is a folder with {what}; give the path of one")
        return files[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a checkpoint")
    return path


def files_in(folder: Path) -> list[Path]:
    """The networks in a folder: the one of the Hugging Face layout, or all checkpoint files."""
    for name in _MODELS:
        if (folder / name).is_file():
            return [folder / name]
    files = sorted(folder.iterdir())
    indices = [file for file in files if file.name.endswith(INDEX)]
    whole = [f for f in files if f.suffix in SUFFIXES and f.is_file() and f.name[0] != "."]
    shards = {folder / name for index in indices for name in set(_weight_map(index).values())}
    return indices + [file for file in whole if file not in shards]


def open_state(path: str | Path) -> StoredState:
    """Opens weights of any kind without reading the numbers.

    They are in a Lightning checkpoint, a state dict, safetensors, the index of several files
    (`model.safetensors.index.json`), or a folder that contains one of these; a part of a network in
    several files is refused.
    """
    path = found_file(path)
    part = _PART.search(path.name)
    if part and int(part[1]) > 1:
        raise CheckpointError(
            f"{path} is one of {int(part[1])} files that hold a network together; give the one "
            f"that ends in {INDEX}, or the folder that holds them all"
        )
    return _opened(path)


def _opened(path: Path) -> StoredState:
    if path.name.endswith(INDEX):
        return _open_sharded(path)
    if is_safetensors(path):
        return _open_safetensors(path)
    return _open_torch(path)


def is_safetensors(path: Path) -> bool:
    """Whether to read a file as safetensors: by its extension or its first bytes."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        try:
            begin = file.read(9)
        except OSError as error:
            error.filename = str(path)
            raise
    return begin[8:] == b"{" and begin[4:8] == bytes(4)


def _open_safetensors(path: Path) -> StoredState:
    check_kind(path)
    opened = SafetensorsFile.open(path)
    # The library's save_model records which names it left out because their tensors are tied.
    tied = {
        name: kept
        for name, kept in opened.metadata.items()
        if kept in opened.table and name not in opened.table
    }
    table = opened.table | {name: opened.table[kept] for name, kept in tied.items()}
    if not table:
        raise CheckpointError(f"{path} holds no tensors: give a file of weights")
    repeated = sum(opened.raw(kept).size for kept in tied.values())
    if repeated > MOST_TIMES * path.stat().st_size + SLACK:
        raise CheckpointError(
            f"{path} is far larger in memory than the file: its header ties {len(tied)} names to "
            "others; save the tensors themselves"
        )
    notes = {name: note for name, note in opened.metadata.items() if name not in tied}
    return StoredState(path, table, lambda name: opened.raw(tied.get(name, name)), notes=notes)


def _open_torch(path: Path) -> StoredState:
    from lightning_merge.state_dicts import entry_of, raw_of
    from lightning_merge.torch_state import read_torch_state

    held = read_torch_state(path, mapped=True)
    table = {name: entry_of(name, value) for name, value in held.tensors.items()}
    return StoredState(
        path, table, lambda name: raw_of(held.tensors[name]), held.extra, held.content
    )


def _open_sharded(index: Path) -> StoredState:
    names = dict(_weight_map(index))
    parts: dict[str, StoredState] = {}
    for file in dict.fromkeys(names.values()):
        shard = index.parent / file
        if not shard.is_file():
            raise CheckpointError(f"{index} names '{file}', which is not there; copy all its files")
        parts[file] = _opened(shard)
    for name, file in names.items():
        if name not in parts[file].table:
            raise CheckpointError(f"{index}: '{name}' is not in {file}; copy its files again")
    for file, part in parts.items():
        # What the index does not name would be lost; transformers reads it, too.
        for name in part.table:
            names.setdefault(name, file)
    table = {name: parts[file].table[name] for name, file in names.items()}
    notes = next(iter(parts.values())).notes
    return StoredState(
        index, table, lambda name: parts[names[name]].raw(name), shards=names, notes=notes
    )


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        if index.stat().st_size > _LARGEST_INDEX:
            raise ValueError("too long")
        read = json.loads(index.read_bytes(), object_pairs_hook=without_duplicates)
        names = read["weight_map"]
        # A shard must be in its index's folder: a path to elsewhere is not followed.
        plain = (
            Path(file).name == file and len(os.fsencode(file)) < 256 for file in names.values()
        )
        if not names or not all(plain):
            raise ValueError("no plain file names")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of shards; copy or save it again") from error
    return names
