"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation(*models: nn.Module) -> Iterator[None]:
    """Puts networks into eval mode, and every submodule back into its own afterwards.

    Gradients are left as they are: add `torch.no_grad()` where none are wanted.

    Args:
        models: The networks; their submodules may be in different modes.
    """
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        # A module that was replaced meanwhile has no mode to go back to.
        for module, training in modes.items():
            module.training = training


@contextmanager
def gradient_free(*models: nn.Module) -> Iterator[None]:
    """The same, without gradients and without inference mode meanwhile.

    Only ordinary tensors tell whether they were changed, which hooks rely on.

    Args:
        models: The networks.
    """
    with evaluation(*models), torch.inference_mode(False), torch.no_grad():
        yield
