"""Watching what a module is given, however its caller passes it, and what it returns."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


def watch_input(module: nn.Module, receive: Callable[[Any], None]) -> RemovableHandle:
    """Calls a function with a module's first input, whenever the module runs.

    Args:
        module: Any module that takes something.
        receive: Gets what the caller passed first, by position or by name.

    Returns:
        What ends the watch (`remove()`).
    """

    def before(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        receive((*given, *named.values())[0])

    return module.register_forward_pre_hook(before, with_kwargs=True)


def watch_output(module: nn.Module, receive: Callable[[Any], None]) -> RemovableHandle:
    """Calls a function with what a module returns, whenever it runs; as `watch_input`."""

    def after(_module: nn.Module, _given: tuple[Any, ...], output: Any) -> None:
        receive(output)

    return module.register_forward_hook(after)
