"""What every aggregate takes: state dicts, or paths of files that are read tensor by tensor."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lightning_merge.aggregate.on_disk import StateOnDisk
from lightning_merge.state_dicts import check_finite, table_of
from lightning_merge.tensor_table import Entry, common_names

State = Mapping[str, Tensor] | str | Path
"""A state dict, anything that acts like one, or the path of a file of weights."""


def opened(state: State) -> Mapping[str, Tensor]:
    """A state dict; that of a path stays on the disk.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    return StateOnDisk(state) if isinstance(state, str | Path) else state


def opened_all(states: Sequence[State]) -> tuple[list[Mapping[str, Tensor]], list[str]]:
    """State dicts under common names, and what to call each in an error.

    Raises:
        CheckpointError: If a file cannot be read, or something is no plain tensor.
        ArchitectureMismatchError: If a name is in one of them only.
    """
    names = [
        str(state) if isinstance(state, str | Path) else f"state {index}"
        for index, state in enumerate(states)
    ]
    found = [opened(state) for state in states]
    if not found:
        return [], []
    tables = [table_of(state) for state in found]
    own = common_names(tables, names)
    return [
        state
        if list(known.values()) == list(known) == list(table)
        else Renamed(state, known, table)
        for state, known, table in zip(found, own, tables, strict=True)
    ], names


class Renamed(Mapping[str, Tensor]):
    """A state dict under other names.

    Args:
        state: The state dict.
        names: Its own names by the new ones.
        table: Its types and shapes, by its own names.
    """

    def __init__(
        self, state: Mapping[str, Tensor], names: Mapping[str, str], table: Mapping[str, Entry]
    ) -> None:
        self._state, self._names = state, names
        self.table = {name: table[own] for name, own in names.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._state[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def checked_tensors(
    states: Sequence[Mapping[str, Tensor]], names: Sequence[str], key: str
) -> list[Tensor]:
    """One tensor of each ingredient, without gradients, checked to be finite.

    Infinities that all of them share are part of the architecture, such as a mask's.

    Raises:
        NonFiniteError: If one holds NaN or another infinity.
    """
    values = [state[key].detach() for state in states]
    for value, name in zip(values, names, strict=True):
        check_finite(f"{name}: '{key}'", value, values)
    return values
