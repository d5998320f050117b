"""What every aggregate takes: state dicts, or paths of files that are read tensor by tensor."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_merge.aggregate.on_disk import LazyState, StateOnDisk
from lightning_merge.errors import NonFiniteError
from lightning_merge.state_dicts import check_finite, in_memory, is_finite, table_of
from lightning_merge.tensor_table import Entry, common_names

State = Mapping[str, Tensor] | nn.Module | str | Path
"""A state dict, of tensors or of NumPy arrays, a network that has one, or the path of a file."""


def opened(state: State) -> Mapping[str, Tensor]:
    """A state dict, that of a path on the disk; a `CheckpointError` if it cannot be read."""
    if isinstance(state, str | Path):
        return StateOnDisk(state)
    return in_memory(state)


def opened_all(
    states: Sequence[State], called: Sequence[str] | None = None
) -> tuple[list[Mapping[str, Tensor]], list[str]]:
    """State dicts under common names, and what to call each in an error.

    What is no path is called as `called` says, by its number if that is not given.
    """
    names = [
        str(state) if isinstance(state, str | Path) else called[k] if called else f"state {k}"
        for k, state in enumerate(states)
    ]
    found = [opened(state) for state in states]
    tables = [table_of(state) for state in found]
    own = common_names(tables, names)
    return [
        state
        if list(known.values()) == list(known) == list(table)
        else Renamed(state, known, table)
        for state, known, table in zip(found, own, tables, strict=True)
    ], names


class Renamed(LazyState):
    """A state dict under other names; `names` has its own by the new ones, `table` by its own."""

    def __init__(
        self, state: Mapping[str, Tensor], names: Mapping[str, str], table: Mapping[str, Entry]
    ) -> None:
        self._state, self._names = state, names
        self.table = {name: table[own] for name, own in names.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._state[self._names[name]]


def checked_tensors(
    states: Sequence[Mapping[str, Tensor]], names: Sequence[str], key: str
) -> list[Tensor]:
    """One tensor of each ingredient, without gradients.

    A `NonFiniteError` if one holds NaN, or an infinity that the others do not: a constant mask is
    part of an architecture.
    """
    values = [state[key].detach() for state in states]
    for value, name in zip(values, names, strict=True):
        check_finite(f"{name}: '{key}'", value, values)
    return values


def is_numeric(value: Tensor) -> bool:
    """Whether a tensor can be scaled: a floating-point or complex one."""
    return value.is_floating_point() or value.is_complex()


def wide(value: Tensor) -> torch.dtype:
    """In which type a tensor is worked on: float64, complex128 for complex ones."""
    return torch.complex128 if value.is_complex() else torch.float64


def checked(name: str, merged: Tensor, start: Tensor | None = None) -> Tensor:
    """A result; a `NonFiniteError` if it is beyond its type's range.

    Infinities of a mask may be in it, where `start`, an ingredient, has the same.
    """
    if not is_finite(merged):
        odd = ~torch.isfinite(merged.to(wide(merged)))
        if start is None or not torch.equal(merged[odd], start[odd]):
            raise NonFiniteError(
                f"'{name}' is NaN or beyond the range of {merged.dtype}; choose a smaller scale, "
                "check the ingredients, or convert them to float32"
            )
    return merged


def check_finite_over_data(what: str, sums: Mapping[str, Tensor]) -> None:
    """Checks what was summed over a network's data; a `NonFiniteError` if it is not finite."""
    for name, value in sums.items():
        if not torch.isfinite(value).all():
            raise NonFiniteError(
                f"{what}: that of '{name}' is NaN or infinite; look for it in the images and in "
                "the network's weights"
            )
