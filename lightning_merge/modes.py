"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation(*models: nn.Module) -> Iterator[None]:
    """Models in evaluation mode and without gradients, and every module's own mode afterwards.

    Inference mode is left, because only ordinary tensors tell whether they were changed.

    Args:
        models: Any modules; some of their parts may be in training mode and others not.
    """
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
