"""Watching what a module is given, however its caller passes it, and what it returns."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_merge.errors import ConfigError


def watch_input(module: nn.Module, receive: Callable[[Any], None]) -> RemovableHandle:
    """Calls a function with a module's first input, whenever the module runs, until removed.

    That is what the caller passed first, by position or by name.
    """

    def before(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        receive((*given, *named.values())[0])

    return module.register_forward_pre_hook(before, with_kwargs=True)


def watch_output(module: nn.Module, receive: Callable[[Any], None]) -> RemovableHandle:
    """Calls a function with what a module returns, whenever it runs; as `watch_input`."""

    def after(_module: nn.Module, _given: tuple[Any, ...], output: Any) -> None:
        receive(output)

    return module.register_forward_hook(after)


def output_given(model: nn.Module, layer: nn.Module, given: Any, x: Tensor) -> Any:
    """What a network gives for other inputs, while a layer gives what it gave before.

    Where that is what it gave before, too, it depends on nothing but that layer. `given` is the
    layer's output for the former inputs `x`, `(N, ..., W)`, whose examples and columns are
    exchanged.
    """
    with layer.register_forward_hook(lambda *_: given):
        return model(x.flip(0).roll(1, -1))


def check_watchable(model: nn.Module, *having: str) -> None:
    """Refuses a network of which a layer is a program of TorchScript, whose layers call no hooks.

    Where attributes are given, a layer matters if it has one of them.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, torch.jit.ScriptModule) and any(hasattr(layer, one) for one in having):
            where = f"'{name}' of " if name else ""
            raise ConfigError(
                f"{where}{type(model).__name__} is TorchScript, whose layers cannot be "
                "observed: give the network that it was made from, with its weights"
            )
