"""Checks of an untrusted file's description of a network, before the network is built.

A file cannot make us import, fetch or open anything, and a small file cannot build a large
network.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_merge.errors import ConfigError, MergeError

# Arguments of timm.create_model that fetch or open weights.
_OPENS = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
    *("pretrained_model_args", "pretrained_filter_fn", "checkpoint_path", "cache_dir"),
)
# Keys under which a configuration names classes, and the packages that are always allowed.
_NAME_CLASSES = ("class_path", "optimizer", "lr_scheduler")
_OWN = ("lightning_merge.", "torch.optim.", "torchmetrics.")
_TIMES, _SLACK = 4, 64 << 20
_TENSORS_TIMES, _MORE_TENSORS = 8, 10_000
_MAKES: tuple[Callable[..., Tensor], ...] = (
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn),
    *(torch.arange, torch.linspace, torch.tensor, torch.eye),
)
_TAKES_APART = (torch.unbind, torch.Tensor.unbind, torch.Tensor.tolist)


def check_arguments(path: object, given: Mapping[str, Any], instead: str) -> None:
    """Checks that a network's arguments are plain values that do not open or fetch anything.

    They are `model` (timm's name), `model_kwargs` and others; `instead` is the advice in messages.
    """
    for name, value in given.items():
        if not _is_plain(value):
            raise ConfigError(
                f"{path}: its hyper-parameter '{name}' is no plain value, and files are not "
                f"trusted with more: {instead}"
            )
    model, more = given.get("model"), given.get("model_kwargs")
    if isinstance(model, str) and ":" in model:
        raise ConfigError(
            f"{path} names the network '{model[:80]}', which would be fetched from a hub or "
            f"folder because a file says so: {instead}"
        )
    opens = [name for name in _OPENS if isinstance(more, Mapping) and more.get(name)]
    if opens:
        raise ConfigError(
            f"{path} has '{opens[0]}' among its model_kwargs, so that weights would be fetched or "
            f"opened because a file says so: {instead}"
        )


def check_classes(path: object, value: Any, instead: str) -> None:
    """Checks that a configuration from a file names only classes of this package or of torch.

    They are its values of `class_path`, nested in `init_args`; any other module could do anything
    when it is imported. `instead` is the advice in messages.
    """
    if isinstance(value, Mapping):
        for key, one in value.items():
            named = key in _NAME_CLASSES and isinstance(one, str)
            if named and "." in one and not one.startswith(_OWN):
                raise ConfigError(
                    f"{path} names the class '{one[:80]}', which is not imported because a file "
                    f"says so: {instead}"
                )
            check_classes(path, one, instead)
    elif isinstance(value, list | tuple):
        for one in value:
            check_classes(path, one, instead)


@contextmanager
def bounded(path: object, state: Mapping[str, Tensor], instead: str) -> Iterator[None]:
    """Limits the size of a network that is built from a file's description.

    It may not become far larger than the file's tensors; `instead` is the advice in messages.
    """
    held = sum(value.numel() * value.element_size() for value in state.values())
    limit = _Limit(_TIMES * held + _SLACK, _TENSORS_TIMES * len(state) + _MORE_TENSORS)
    try:
        with limit:
            yield
    except MergeError:
        raise
    except Exception as error:
        first = str(error).partition("\n")[0][:200]
        raise ConfigError(
            f"{path}: no network can be made of its hyper-parameters ({first}): {instead}"
        ) from error


class _Limit(TorchFunctionMode):
    """Counts allocated memory, and stops before it is filled."""

    def __init__(self, most_bytes: int, most_tensors: int) -> None:
        super().__init__()
        self.bytes, self.tensors = most_bytes, most_tensors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _MAKES:
            # On `meta` the size is known before memory is filled.
            planned = func(*args, **{**(kwargs or {}), "device": "meta"})
            self._count(planned.numel() * planned.element_size(), 1)
        elif func in _TAKES_APART and args[0].dim():
            # A rate for each layer is drawn as one tensor, and read number by number.
            self._count(0, args[0].shape[0])
        return func(*args, **(kwargs or {}))

    def _count(self, size: int, tensors: int) -> None:
        self.bytes -= size
        self.tensors -= tensors
        if self.bytes < 0 or self.tensors < 0:
            raise MemoryError("it would be far larger than the file's own tensors")


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
