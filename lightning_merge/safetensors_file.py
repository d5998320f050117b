"""Safetensors files, read through a memory map and written piece by piece, without torch.

Format: eight bytes with the header's length, the header (JSON), the tensors' bytes one after
another. Headers are untrusted: everything in them is checked against the file.
"""

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np

from lightning_merge.errors import CheckpointError
from lightning_merge.number_types import SIZES, Raw, type_name
from lightning_merge.tensor_table import Entry

MOST_TENSORS = 1 << 16
MOST_AXES = 64
MOST_TIMES, SLACK = 32, 1 << 20
"""How much larger than its file a network may be, whose layers share weights."""
_LONGEST_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class SafetensorsFile:
    """An open file, with the type and shape of each tensor, and the metadata in its header."""

    path: Path
    table: dict[str, Entry]
    metadata: dict[str, str]
    _places: dict[str, tuple[int, int]]
    _map: mmap.mmap | None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a file and checks its header against its size."""
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                    raise ValueError("the header is longer than the file")
                header = json.loads(file.read(length).decode(), object_pairs_hook=_few_names)
                # Private pages: writable, as tensors must be, without changing the file.
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            metadata = header.pop("__metadata__", {})
            table, places = _checked(header, 8 + length, size)
            metadata = {str(key): str(value) for key, value in dict(metadata).items()}
        except _ManyTensorsError as error:
            raise CheckpointError(f"{path} {error}") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is missing, truncated or not a safetensors file; copy or save it again"
            ) from error
        return cls(path, table, metadata, places, mapped)

    def raw(self, name: str) -> Raw:
        """The bytes of a tensor, in the file's memory map."""
        start, stop = self._places[name]
        return np.frombuffer(self._map or b"", np.uint8, stop - start, start)


class _ManyTensorsError(ValueError):
    pass


def _few_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_TENSORS:
        raise _ManyTensorsError(f"holds more than {MOST_TENSORS} tensors: split it")
    return without_duplicates(pairs)


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of JSON; a `ValueError` if a name occurs twice, which would hide the first."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name occurs twice")
    return made


def _checked(
    header: Mapping[str, Any], start: int, size: int
) -> tuple[dict[str, Entry], dict[str, tuple[int, int]]]:
    table, places = {}, {}
    for name, described in header.items():
        code, shape = described["dtype"], described["shape"]
        first, last = described["data_offsets"]
        whole = [*shape, first, last]
        if not all(type(number) is int and number >= 0 for number in whole):
            raise ValueError("a size is no whole number")
        # An empty tensor's other sizes could be anything; reject those that torch cannot represent.
        if any(number >= 1 << 62 for number in whole) or prod(filter(None, shape)) >= 1 << 62:
            raise ValueError("a size is too large")
        if len(shape) > MOST_AXES:
            raise ValueError("a tensor has too many axes")
        if code in SIZES and prod(shape) * SIZES[code] != last - first:
            raise ValueError("a tensor's size does not fit its shape")
        table[name] = Entry(str(code), tuple(shape))
        places[name] = (start + first, start + last)
    reached = start
    for first, last in sorted(places.values()):
        if first != reached or last < first:
            raise ValueError("tensors overlap, or leave a gap")
        reached = last
    if reached != size:
        raise ValueError("the file is shorter or longer than its header says")
    return table, places


def layout(
    table: Mapping[str, Entry], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
    """The header's bytes, each tensor's offset, and the size of a new file of such tensors."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    places, reached = {}, 0
    for name in in_order(table):
        entry = table[name]
        if name == "__metadata__" or name.encode(errors="replace").decode() != name:
            raise CheckpointError(
                f"'{name}' is no name of a tensor in safetensors; write a .pt file"
            )
        if entry.code in ("C32", "C128"):
            raise CheckpointError(
                f"'{name}' is {type_name(entry.code)}, which safetensors cannot hold; write a "
                ".pt file"
            )
        places[name], reached = reached, reached + prod(entry.shape) * SIZES[entry.code]
        offsets = [places[name], reached]
        header[name] = {"dtype": entry.code, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    begins = {name: start + place for name, place in places.items()}
    return len(text).to_bytes(8, "little") + text, begins, start + reached


def in_order(table: Mapping[str, Entry]) -> list[str]:
    """The order of tensors in `layout`: the widest number types first, so that all are aligned."""
    return sorted(table, key=lambda name: -SIZES[table[name].code])
