"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation(*models: nn.Module) -> Iterator[None]:
    """Models in evaluation mode; afterwards every submodule is in its own mode again.

    Args:
        models: The models; their weights, devices and gradients are left alone.
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
