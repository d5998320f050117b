"""Weight files that fit each other, and the parts that their average is computed in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_merge.aggregate.exact_mean import SPAN, Mean
from lightning_merge.aggregate.name_weights import NameWeights, Weights, compiled
from lightning_merge.errors import ArchitectureMismatchError, CheckpointError, ConfigError
from lightning_merge.number_types import CODES, SIZES, Raw, is_complex, is_fraction, widened
from lightning_merge.stored_state import StoredState, files_in, open_state
from lightning_merge.tensor_table import (
    Entry,
    common_entries,
    common_names,
    must_agree,
    not_linear,
    other_factors,
)


@dataclass(frozen=True)
class FilesToAverage:
    """Open files that fit each other, and what to call them.

    `entries` are types and shapes of the result's tensors, `extra` is what is no tensor and the
    same in all state dicts, and `left_out` names what the result does not have.
    """

    states: list[StoredState]
    names: list[str]
    entries: dict[str, Entry]
    extra: dict[str, Any]
    left_out: list[str]
    _own: list[dict[str, str]]
    _weights: NameWeights = field(repr=False)

    def work_on(self, name: str) -> Iterator[Callable[[], Iterator[tuple[int, Raw]]]]:
        """The parts that a tensor's bytes are made in, each a function that gives its pieces.

        A piece is where it begins in the tensor's bytes, and its bytes, which are good until the
        next one.
        """
        entry = self.entries[name]
        raws = self._raws(name)
        self._check(name, entry)
        if not is_fraction(entry.code):
            yield lambda: iter([(0, raws[0])])
            return
        codes = [entry.code for entry in self._entries(name)]
        mean = Mean(name, raws, codes, self._weights.of(name), self.names, entry.code)
        for start in range(0, mean.size, SPAN):
            yield partial(mean.blocks, start)

    def _check(self, name: str, entry: Entry) -> None:
        why = must_agree(name, entry, self.entries)
        if why:
            for alike, file in zip(self._alike(name), self.names, strict=True):
                if not alike:
                    raise ArchitectureMismatchError(f"'{name}' of {file} {why}")
        for other in other_factors(name, self.entries):
            if not (all(self._alike(name)) or all(self._alike(other))):
                raise not_linear(name, other)

    def _alike(self, name: str) -> list[bool]:
        """For every file that has the tensor, whether its numbers are those of the first."""
        codes = [entry.code for entry in self._entries(name)]
        numbers: Sequence[NDArray[np.generic]] = self._raws(name)
        if len(set(codes)) > 1:
            numbers = [
                widened(raw, code) for raw, code in zip(self._raws(name), codes, strict=True)
            ]
        return [np.array_equal(one, numbers[0]) for one in numbers]

    def _raws(self, name: str) -> list[Raw]:
        """The tensor's bytes in every file that has it."""
        pairs = zip(self.states, self._own, strict=True)
        return [state.raw(own[name]) for state, own in pairs if name in own]

    def read_of(self, name: str) -> int:
        """How many bytes of the files go into a tensor."""
        return sum(prod(entry.shape) * SIZES[entry.code] for entry in self._entries(name))

    def _entries(self, name: str) -> list[Entry]:
        """The tensor's type and shape in every file that has it."""
        pairs = zip(self.states, self._own, strict=True)
        return [state.table[own[name]] for state, own in pairs if name in own]

    def bytes_of(self, name: str) -> int:
        """How many bytes a tensor of the result has."""
        entry = self.entries[name]
        return prod(entry.shape) * SIZES[entry.code]

    def first_shards(self) -> dict[str, str]:
        """In which of the first network's files a tensor is; empty for what is in a single one."""
        first = self.states[0]
        return {name: first.shards.get(self._own[0].get(name, ""), "") for name in self.entries}


def open_files(
    paths: Sequence[str | Path],
    weights: Weights | None = None,
    dtype: str | None = None,
    include: str | None = None,
    exclude: str | None = None,
) -> FilesToAverage:
    """Opens files and checks that they can be averaged.

    Args:
        paths: Lightning checkpoints, state dicts, safetensors, indices of sharded networks, and
            folders: of one network as the Hugging Face libraries have it, or of checkpoints,
            all of which are then taken by name.
        weights: As for `average`.
        dtype: The type of all floating-point tensors of the result, such as `bfloat16`.
        include: A regular expression that is found in the names of the tensors to write.
        exclude: Likewise, of those to leave out.
    """
    files = given_files(paths)
    if len(files) < 2:
        only = f": there is only {files[0]}" if files else ""
        raise CheckpointError(f"merging needs at least two checkpoints{only}; add another")
    names = [str(file) for file in files]
    shares = NameWeights(weights, len(files), "average").check_means()
    states = [open_state(file) for file in files]
    taken = _chooser(include, exclude)
    tables = [{n: e for n, e in state.table.items() if taken(n)} for state in states]
    if not all(tables):
        raise ConfigError(
            "average: --include and --exclude leave no tensor; the first is "
            f"'{next(iter(states[0].table))}'"
        )
    own = common_names(tables, names)
    entries = common_entries(
        [{n: t[o] for n, o in known.items()} for t, known in zip(tables, own, strict=True)], names
    )
    shares.check_used(entries)
    entries = {name: _converted(name, entry, dtype) for name, entry in entries.items()}
    extra, differing = in_common([state.extra for state in states], taken)
    for name in differing:
        if name.endswith("_extra_state"):
            raise ArchitectureMismatchError(
                f"'{name}' differs between the files and is no tensor; leave it out with "
                f"--exclude '{name}'"
            )
    left_out = [name for name in {**states[0].table, **states[0].extra} if not taken(name)]
    return FilesToAverage(states, names, entries, extra, left_out + differing, own, shares)


def given_files(paths: Sequence[str | Path]) -> list[Path]:
    """The networks' files, in order, where folders are given among them."""
    files: list[Path] = []
    for given in paths:
        path = Path(given)
        if not str(given):
            raise CheckpointError("a path is empty, not that of a checkpoint; leave it out")
        found = files_in(path) if path.is_dir() else [path]
        if not found:
            raise CheckpointError(f"{path} is a folder with no checkpoint; give the path of one")
        files += found
    return files


def _chooser(include: str | None, exclude: str | None) -> Callable[[str], bool]:
    wanted = compiled(include or "", "--include")
    unwanted = compiled(exclude, "--exclude") if exclude else None
    return lambda name: bool(wanted.search(name)) and not (unwanted and unwanted.search(name))


def _converted(name: str, entry: Entry, dtype: str | None) -> Entry:
    if entry.code not in SIZES:
        raise CheckpointError(
            f"'{name}' is of the packed type {entry.code}, whose numbers have no mean here; leave "
            "it out with --exclude"
        )
    if dtype is None or not is_fraction(entry.code) or is_complex(entry.code):
        return entry
    return Entry(CODES[dtype], entry.shape)


def in_common(
    entries: Sequence[Mapping[str, Any]], taken: Callable[[str], bool] = lambda _: True
) -> tuple[dict[str, Any], list[str]]:
    """Entries that all files have alike, and the names of those that differ or that some lack."""
    kept: dict[str, Any] = {}
    differing = []
    for name in filter(taken, dict.fromkeys(name for one in entries for name in one)):
        if all(name in one and same(one[name], entries[0].get(name)) for one in entries):
            kept[name] = entries[0][name]
        else:
            differing.append(name)
    return kept, differing


def same(a: Any, b: Any) -> bool:
    """Whether two entries of files are equal, tensors in them too.

    Each pair is looked at once: a stranger's entry may hold itself, or another a million times.
    """
    left, seen = [(a, b)], set()
    while left:
        a, b = left.pop()
        if a is b or (id(a), id(b)) in seen:
            continue
        seen.add((id(a), id(b)))
        if type(a) is not type(b):
            return False
        if isinstance(a, Mapping | list | tuple):
            if len(a) != len(b) or (isinstance(a, Mapping) and a.keys() != b.keys()):
                return False
            inner = ((a[k], b[k]) for k in a) if isinstance(a, Mapping) else zip(a, b, strict=True)
            left.extend(inner)
        elif callable(getattr(a, "equal", None)):
            if a.shape != b.shape or a.dtype != b.dtype or not a.equal(b):
                return False
        elif a != b and not (a != a and b != b):
            return False
    return True
