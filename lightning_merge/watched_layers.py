"""Watching what a module is given, however its caller passes it."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


def watch_input(module: nn.Module, receive: Callable[[Any], None]) -> RemovableHandle:
    """Calls a function with a module's first input, by position or by name, whenever it runs.

    Returns:
        What ends the watch.
    """

    def before(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        receive((*given, *named.values())[0])

    return module.register_forward_pre_hook(before, with_kwargs=True)
