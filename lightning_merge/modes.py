"""The state in which a network runs: its mode, its caches, and other weights than its own."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


@contextmanager
def evaluation(*models: nn.Module) -> Iterator[None]:
    """Puts networks into eval mode, and every submodule back into its own mode afterwards.

    Gradients stay enabled or disabled as they are: add `torch.no_grad()` to disable them.
    """
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        # A module that was added meanwhile has no mode to restore.
        for module, training in modes.items():
            module.training = training


def clear_caches(model: nn.Module) -> None:
    """Clears what a network has cached of its weights; all modes stay as they are.

    In evaluation mode LeViT, TinyViT and EfficientFormer make their attention biases once, and keep
    them until a mode is set. So call it wherever weights change between two runs.
    """
    caching = [module for module in caching_modules(model) if not module.training]
    if not caching:
        return
    modes = {module: module.training for module in model.modules()}
    for module in caching:
        module.train(False)
    for module, training in modes.items():
        module.training = training


def under_weights(network: nn.Module, weights: Mapping[str, Tensor], run: Callable[[], T]) -> T:
    """What `run` gives while the network has these weights.

    A backward pass belongs inside where it may compute parts again (activation checkpointing):
    after `torch.func.functional_call` they would be computed with the network's own weights.
    """
    held = _Held(network)
    named = {f"network.{name}": value for name, value in weights.items()}
    return torch.func.functional_call(held, named, (run,))


class _Held(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


def caching_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that may cache something until their mode is set."""
    return [module for module in model.modules() if type(module).train is not nn.Module.train]


@contextmanager
def gradient_free(*models: nn.Module) -> Iterator[None]:
    """As `evaluation`, without gradients, inference mode and compiled code meanwhile.

    Hooks need to detect changes to tensors, which inference tensors do not record.
    """
    with evaluation(*models), as_written(), torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def in_float64() -> Iterator[None]:
    """Operators that create tensors without a dtype create float64 meanwhile."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def as_written() -> AbstractContextManager[Any]:
    """Runs what was compiled as it is written: compiled code calls no hook that came later."""
    # Nothing was compiled before torch's compiler was imported, which takes seconds.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
