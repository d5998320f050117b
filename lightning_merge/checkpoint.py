"""Reading and writing weights: Lightning checkpoints, plain state dicts, safetensors.

Files are read with `weights_only=True`, so that opening an untrusted checkpoint never
runs code from it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.files import write_whole
from lightning_merge.safetensors_file import in_order, layout
from lightning_merge.state_dicts import (
    StateDict,
    check_ingredients,
    digest,
    fit_names,
    in_memory,
    prefixed,
    raw_of,
    table_of,
    tensor_of,
    tensors_of,
)
from lightning_merge.stored_state import INDEX, found_file, is_safetensors, open_state
from lightning_merge.torch_state import read_torch_state

__all__ = [
    "Checkpoint",
    "StateDict",
    "check_ingredients",
    "digest",
    "fit_names",
    "prefixed",
    "read_checkpoint",
    "state_of",
    "tensors_of",
    "write_checkpoint",
    "write_safetensors",
]


@dataclass(frozen=True)
class Checkpoint:
    """The weights in one file, and whatever else it contains.

    Attributes:
        path: The file.
        state_dict: Parameters and buffers by name.
        content: The other entries of the file (`hyper_parameters`, `epoch`, ...); empty
            for a plain state dict.
        extra: Entries of the state dict that are not tensors, such as `_extra_state`.
    """

    path: Path
    state_dict: StateDict
    content: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """The arguments that the Lightning module saved; empty if it saved none."""
        found = self.content.get("hyper_parameters")
        return (
            {str(key): value for key, value in found.items()} if isinstance(found, Mapping) else {}
        )


def state_of(network: Mapping[str, Any] | nn.Module | str | os.PathLike[str]) -> Mapping[str, Any]:
    """The state dict of a network, of a file of weights, or the one that is given, NumPy's too."""
    if isinstance(network, str | os.PathLike):
        return read_checkpoint(network).state_dict
    return in_memory(network)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a file of weights onto the CPU.

    Args:
        path: A Lightning checkpoint, a `torch.save`d state dict (alone or under
            `state_dict`, `model_state_dict` or `model`), a safetensors file, the index of a
            sharded network (`model.safetensors.index.json`), or a folder that contains one of
            these.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: If the file is missing or truncated, cannot be read as weights only,
            has no tensors, or has tensors that are not plain arrays of numbers.
    """
    file = found_file(path if isinstance(path, str) else Path(path))
    if not file.name.endswith(INDEX) and not is_safetensors(file):
        held = read_torch_state(file)
        return Checkpoint(Path(path), held.tensors, held.content, held.extra)
    stored = open_state(file)
    state: StateDict = {}
    for name, entry in stored.table.items():
        state[name] = tensor_of(stored.raw(name).copy(), entry)
    return Checkpoint(Path(path), state, stored.content, stored.extra)


def write_checkpoint(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Writes `content` with `torch.save`, whole or not at all."""
    return write_whole(path, lambda partial: torch.save(dict(content), partial))


def write_safetensors(
    path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes a state dict as safetensors, whole or not at all.

    Tensors that share memory (tied weights) are written once each.
    """
    table = table_of(state)
    header, _, _ = layout(table, metadata or {})

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(header)
            for name in in_order(table):
                file.write(raw_of(state[name]).data)

    return write_whole(path, write)
