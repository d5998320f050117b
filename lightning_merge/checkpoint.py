"""Reading and writing weights: Lightning checkpoints, plain state dicts, safetensors.

Files are read with `weights_only=True`, so that opening a stranger's checkpoint never
runs code from it.
"""

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_merge.errors import ArchitectureMismatchError, CheckpointError, NonFiniteError
from lightning_merge.files import write_whole

StateDict = dict[str, Tensor]

_NESTED = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one file, and whatever else it held.

    Attributes:
        path: The file.
        state_dict: Parameters and buffers by name.
        content: The other entries of the file (`hyper_parameters`, `epoch`, ...); empty
            for a plain state dict.
    """

    path: Path
    state_dict: StateDict
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """What the Lightning module saved of its own arguments; empty if nothing."""
        return dict(self.content.get("hyper_parameters") or {})


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a `.ckpt`, `.pt`, `.pth` or `.safetensors` file onto the CPU.

    Args:
        path: A Lightning checkpoint, a `torch.save`d state dict (alone or under
            `state_dict`, `model_state_dict` or `model`), or a safetensors file.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: If the file is missing, truncated, needs more than weights to be
            read, or holds no tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the path of a checkpoint in it")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a checkpoint")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    nested = next((key for key in _NESTED if isinstance(content.get(key), Mapping)), None)
    state = content[nested] if nested else content
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    stray = [str(key) for key, value in state.items() if isinstance(value, Mapping)]
    if stray and not nested:
        raise CheckpointError(
            f"{path} holds no state dict under a name that is known, only {', '.join(stray)}; save "
            "it alone, or under 'state_dict'"
        )
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors: give a Lightning checkpoint, a state dict or safetensors"
        )
    rest = {key: value for key, value in content.items() if key != nested} if nested else {}
    return Checkpoint(path, tensors, rest)


def write_checkpoint(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Writes `content` with `torch.save`, whole or not at all."""
    return write_whole(path, lambda partial: torch.save(dict(content), partial))


def write_safetensors(
    path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes a state dict as safetensors, whole or not at all.

    Tensors that share memory (tied weights) are written once each.
    """
    from safetensors.torch import save_file

    tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
    return write_whole(path, lambda partial: save_file(tensors, partial, dict(metadata or {})))


def digest(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 (hexadecimal) of a state dict: names, types, shapes and every byte."""
    sha = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        sha.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def check_ingredients(states: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> None:
    """Checks that state dicts can be merged: two or more, of one architecture, finite.

    Args:
        states: The ingredients.
        names: What to call each of them in an error, paths as a rule.

    Raises:
        CheckpointError: If there are fewer than two.
        ArchitectureMismatchError: If a name or a shape differs; the first one is named.
        NonFiniteError: If a floating-point tensor holds NaN, or infinities and differs.
    """
    if len(states) < 2:
        only = f": there is only {names[0]}" if names else ""
        raise CheckpointError(f"merging needs at least two checkpoints{only}; add another")
    first = states[0]
    for state, name in zip(states[1:], names[1:], strict=True):
        for key in [*first, *(key for key in state if key not in first)]:
            ours, theirs = _shape(first, key), _shape(state, key)
            if ours != theirs:
                raise ArchitectureMismatchError(
                    f"different architectures: '{key}' is {ours} in {names[0]} and {theirs} in "
                    f"{name}; merge networks of one architecture, or (merge, compare) of different "
                    "tasks with --heads first"
                )
    for state, name in zip(states, names, strict=True):
        for key, value in state.items():
            if not value.is_floating_point() or bool(torch.isfinite(value).all()):
                continue
            # A constant mask: infinities that are the same in all.
            if value.isnan().any() or not all(torch.equal(value, one[key]) for one in states):
                raise NonFiniteError(
                    f"{name}: '{key}' holds NaN or infinity; leave this checkpoint out"
                )


def fit_names(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> StateDict:
    """Gives a state dict the names that a module wants.

    Args:
        state: The state dict, with the module's names, or with those of one part of it
            (that of a bare network, where the module keeps it under `network.`).
        expected: The module's own state dict.
        name: What to call `state` in an error.

    Returns:
        The state dict, with the module's names.

    Raises:
        ArchitectureMismatchError: If neither fits; the first tensor that differs is named.
    """
    named = prefixed(state, expected)
    for key in [*expected, *(key for key in named if key not in expected)]:
        ours, theirs = _shape(named, key), _shape(expected, key)
        if ours != theirs:
            raise ArchitectureMismatchError(
                f"{name} does not fit the network: '{key}' is {ours} in the file and {theirs} in "
                "the network; check the model's name and its number of classes"
            )
    return named


def prefixed(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> StateDict:
    """The state dict with a prefix before every name, if that makes its names the expected ones."""
    for prefix in dict.fromkeys(["", *(key.split(".")[0] + "." for key in expected)]):
        named = {prefix + key: value for key, value in state.items()}
        if named.keys() == expected.keys():
            return named
    return dict(state)


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(tuple(state[key].shape)) if key in state else "absent"


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"(?:GLOBAL|global:?) `?((?!was\b)[a-zA-Z_]\w*\.[\w.]*\w)", str(error))
        if name:
            raise CheckpointError(
                f"{path} is refused: reading it would run code ({name[1]}); save its state "
                "dict alone, torch.save(model.state_dict(), ...)"
            ) from error
        raise CheckpointError(f"{path} is not a checkpoint that torch can read") from error
    except Exception as error:
        # A file that is no pickle can fail anywhere in the unpickler, with any error.
        raise CheckpointError(
            f"{path} is not a checkpoint, or is truncated; copy or save it again"
        ) from error


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is truncated; copy or save it again"
        ) from error
