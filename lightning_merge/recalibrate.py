"""Repairing the activation statistics that averaging weights breaks: BatchNorm reset."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.batches import inputs_of, to_device_of
from lightning_merge.errors import DataError
from lightning_merge.progress import tracked


@torch.no_grad()
def reset_batchnorm(model: nn.Module, batches: Iterable[Any], progress: bool = False) -> int:
    """Sets the running statistics of every BatchNorm to those of `batches`.

    Merged networks carry statistics that neither ingredient had; estimating them anew
    undoes the variance collapse (Jordan et al. 2023, REPAIR; NP Merge, Sec. IV-A). Mean
    and (unbiased) variance of each batch are averaged over the batches, with equal
    weight. Only BatchNorm layers are in training mode meanwhile; dropout stays off, and
    modes, momenta and gradients are as before afterwards.

    Args:
        model: A network that takes one input; changed in place.
        batches: What a data loader gives: tensors, tuples or lists whose first item is the
            input, or dicts with `image`, `x` or `input`. Moved to the model's device.
        progress: Whether to show a progress bar.

    Returns:
        How many layers were reset; 0 (and `batches` is left unread) if none keeps statistics.

    Raises:
        DataError: If there are no batches. Then, and after any other error, the statistics
            are what they were.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    ]
    if not layers:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    before = {layer: copy.deepcopy(dict(layer.named_buffers())) for layer in layers}
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    seen = 0
    try:
        for batch in tracked(batches, "BatchNorm reset", progress):
            model(to_device_of(model, inputs_of(batch)))
            seen += 1
        if not seen:
            raise DataError("BatchNorm reset: there are no batches; give a loader that has some")
    except BaseException:
        for layer, buffers in before.items():
            for name, buffer in buffers.items():
                layer.get_buffer(name).copy_(buffer)
        raise
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(layers)
