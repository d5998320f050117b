"""A state dict that stays on the disk: each tensor is read when it is asked for."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from lightning_merge.errors import CheckpointError


class SafetensorsState(Mapping[str, Tensor]):
    """The tensors of a safetensors file, none of which is kept in memory.

    Args:
        path: The file.

    Raises:
        CheckpointError: If it is missing, truncated or not a safetensors file.
    """

    def __init__(self, path: str | Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is missing, truncated or not a safetensors file; save it again"
            ) from error
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
