"""Finds the state dict in a file of `torch.save`, and checks that its tensors are plain."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_merge.errors import CheckpointError, printable
from lightning_merge.safetensors_file import MOST_TIMES, SLACK
from lightning_merge.state_dicts import StateDict, entry_of
from lightning_merge.torch_file import read_torch

_NESTED = ("state_dict", "model_state_dict", "model")
# What Lightning's WeightAveraging keeps to go on, beside the average that it saves.
_RAW = ("current_model_state",)
_MOST_LOOKED_AT = 100_000


@dataclass(frozen=True)
class TorchState:
    """The tensors in a file, other entries of their state dict, and what the file has beside it."""

    tensors: StateDict
    extra: dict[str, Any]
    content: dict[str, Any]


def read_torch_state(path: Path, mapped: bool = False) -> TorchState:
    """Reads a file and finds the state dict in it; `mapped` leaves the numbers on the disk."""
    content = read_torch(path, mapped)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    nested = next((key for key in _NESTED if isinstance(content.get(key), Mapping)), None)
    if nested is None and not any(isinstance(value, Tensor) for value in content.values()):
        # Under another name it is unmistakable if it is the only one.
        only = [key for key, value in content.items() if _is_flat(value)]
        nested = only[0] if len(only) == 1 else None
    state = content if nested is None else content[nested]
    if nested is None:
        stray = [key for key, value in state.items() if isinstance(value, Mapping)]
        stray = [str(key) for key in stray if _holds_tensors(state[key])]
        if stray:
            raise CheckpointError(
                f"{path} holds no state dict under a name that is known, only "
                f"{', '.join(stray)}; save it alone, or under 'state_dict'"
            )
    tensors, extra = _sorted_out(path, state)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors: give a Lightning checkpoint, a state dict or safetensors"
        )
    check_size(path, tensors)
    rest = (
        {key: value for key, value in content.items() if key != nested}
        if nested is not None
        else {}
    )
    others = [
        printable(key) for key, value in rest.items() if key not in _RAW and _same(value, tensors)
    ]
    if others:
        warnings.warn(
            f"{path} holds several networks: '{nested}' is read, and {', '.join(others)} left; "
            "save the one that you want alone",
            stacklevel=2,
        )
    return TorchState(tensors, extra, rest)


def _same(value: Any, tensors: Mapping[str, Tensor]) -> bool:
    return isinstance(value, Mapping) and _bare(value) >= _bare(tensors)


def _bare(names: Iterable[Any]) -> set[str]:
    # A running mean is wrapped, as networks on several GPUs are.
    return {str(name).removeprefix("module.") for name in names}


def _is_flat(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _sorted_out(path: Path, state: Mapping[Any, Any]) -> tuple[StateDict, dict[str, Any]]:
    tensors: StateDict = {}
    extra: dict[str, Any] = {}
    for key, value in state.items():
        name = str(key)
        if name in tensors or name in extra:
            raise CheckpointError(f"{path} has two entries named '{name}', a number and a text")
        if isinstance(value, Tensor):
            try:
                entry_of(name, value)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
            tensors[name] = value.detach()
        elif not name.endswith("_extra_state") and _holds_tensors(value):
            quantised = "_packed_params" in name
            raise CheckpointError(
                f"{path}: '{name}' is a {type(value).__name__} with tensors in it, "
                + (
                    "of a quantised layer; merge the networks before they are quantised"
                    if quantised
                    else "not a tensor; save a flat state dict, model.state_dict()"
                )
            )
        else:
            extra[name] = value
    return tensors, extra


def check_size(path: Path, tensors: Mapping[Any, Tensor]) -> None:
    """Checks that tensors are about as large in memory as in their file."""
    most = MOST_TIMES * path.stat().st_size + SLACK
    for name, value in tensors.items():
        size = value.numel() * value.element_size()
        most -= size
        if most < 0 or size > value.untyped_storage().nbytes() + SLACK:
            raise CheckpointError(
                f"{path}: '{name}' is far larger than the file, one number repeated perhaps; save "
                "a clone() of it"
            )


def _holds_tensors(value: Any) -> bool:
    left: list[Any] = [value]
    seen: set[int] = set()
    while left and len(seen) < _MOST_LOOKED_AT:
        item = left.pop()
        if isinstance(item, Tensor):
            return True
        if not isinstance(item, Mapping | list | tuple | set) or id(item) in seen:
            continue
        seen.add(id(item))
        left.extend(item.values() if isinstance(item, Mapping) else item)
    return bool(left)
