"""A state dict that stays on the disk: each tensor is read when it is asked for."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from lightning_merge.state_dicts import tensor_of
from lightning_merge.stored_state import open_state
from lightning_merge.tensor_table import Entry


class LazyState(Mapping[str, Tensor]):
    """Tensors that are read or computed when they are asked for; `table` has types and shapes."""

    table: Mapping[str, Entry]

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)


class StateOnDisk(LazyState):
    """The tensors of a file of weights, none of which is kept in memory.

    Each tensor is a part of the file's memory map; what is written to it changes neither the
    file nor what is read next.

    Args:
        path: The file, the index of several, or a folder that holds one network.

    Attributes:
        table: Type and shape of each tensor.

    Raises:
        CheckpointError: If it is missing, truncated or no file of weights.
    """

    def __init__(self, path: str | Path) -> None:
        self._stored = open_state(path)
        self.table = self._stored.table

    def __getitem__(self, name: str) -> Tensor:
        return tensor_of(self._stored.raw(name), self.table[name])


SafetensorsState = StateOnDisk
