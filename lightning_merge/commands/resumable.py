"""Checks of what `--ckpt_path` of Lightning's commands is given, and its errors in a line."""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

from lightning_merge.errors import CheckpointError, MergeError

_TRAINER = "lightning.pytorch.trainer.trainer"
_RESTORES = "lightning.pytorch.trainer.connectors.checkpoint_connector"
# Whose errors are about the file's content. A user's own hook keeps its traceback.
_READERS = ("torch", "lightning.", "lightning_merge", "contextlib", "packaging")
_COUNTS = ("ready", "started", "processed", "completed")
_FIT = "give one that `fit` wrote for this model"


def check_resumable(path: str | None) -> None:
    """Rejects a `--ckpt_path` that is not a Lightning checkpoint before anything is built for it.

    Words such as `best`, and addresses, are left to Lightning; a file that would become far larger
    in memory is rejected too.
    """
    if path is None or path in ("best", "last", "hpc", "registry") or "://" in str(path):
        return
    file = Path(path)
    if file.is_dir():
        # Of a strategy that writes a folder.
        return
    if not file.is_file():
        raise CheckpointError(f"--ckpt_path {path}: no such file; give the path of a checkpoint")
    try:
        _check_content(file)
    except CheckpointError as error:
        raise CheckpointError(f"--ckpt_path {error}") from error


def of_restoring(error: BaseException) -> MergeError | None:
    """An error that Lightning met while it restored a checkpoint, as a `MergeError`."""
    frames = _frames(error)
    restores = any(
        _module(frame) == _RESTORES and frame.f_code.co_name.lstrip("_").startswith("res")
        for frame in frames
    )
    if not (restores and raised_in(error).startswith(_READERS)) and not _in_resumed_step(frames):
        return None
    first, _, rest = str(error).partition("\n\t")
    if first.startswith("Error(s) in loading"):
        first = rest.partition("\n\t")[0]
    wrong = first.strip()
    kind = "" if wrong and not isinstance(error, LookupError) else f"{type(error).__name__} "
    return CheckpointError(
        f"--ckpt_path: the checkpoint does not fit this model or Trainer ({kind}{wrong[:250]}): "
        f"{_FIT}"
    )


def _in_resumed_step(frames: list[FrameType]) -> bool:
    """Whether a resumed optimizer failed: torch does not check the shapes of its state before."""
    return _module(frames[-1]).startswith("torch.optim") and any(
        _module(frame) == _TRAINER and frame.f_locals.get("ckpt_path") is not None
        for frame in frames
    )


def _check_content(file: Path) -> None:
    import torch

    from lightning_merge.stored_state import is_safetensors
    from lightning_merge.torch_file import check_bounded
    from lightning_merge.torch_state import check_size

    if is_safetensors(file):
        raise CheckpointError(f"{file} holds weights alone, as safetensors: {_FIT}")
    archive = check_bounded(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError:
        # It has entries other than weights, which Lightning loads or rejects by its own rules.
        return
    except Exception as error:
        raise CheckpointError(
            f"{file} is not a checkpoint, or is truncated; give another file"
        ) from error
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or "pytorch-lightning_version" not in content:
        raise CheckpointError(f"{file} is no checkpoint of Lightning: {_FIT}")
    if not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{file} has a tensor whose name is no text: {_FIT}")
    check_size(file, {name: value for name, value in _leaves(content) if _in_memory(value)})
    for name, value in _leaves(content.get("loops")):
        if name.rpartition(".")[2] in _COUNTS and (type(value) is not int or value < 0):
            raise CheckpointError(f"{file}: '{name}' of its loops is no count: {_FIT}")


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """What nested mappings and lists hold, with dotted names; of the same object, once."""
    left, seen = [("", value)], set()
    while left:
        name, item = left.pop()
        if not isinstance(item, Mapping | list | tuple):
            yield name, item
        elif id(item) not in seen:
            seen.add(id(item))
            inner = item.items() if isinstance(item, Mapping) else enumerate(item)
            left.extend((f"{name}.{key}" if name else str(key), one) for key, one in inner)


def _in_memory(value: Any) -> bool:
    import torch

    if not isinstance(value, torch.Tensor) or value.is_nested or value.is_meta:
        return False
    return bool(value.layout == torch.strided)


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in walk_tb(error.__traceback__)]


def raised_in(error: BaseException) -> str:
    """The name of the Python module that raised an error."""
    frames = _frames(error)
    return _module(frames[-1]) if frames else ""


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
