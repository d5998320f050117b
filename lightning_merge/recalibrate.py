"""Repairing the activation statistics that averaging weights breaks: BatchNorm reset."""

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.batches import inputs_of, to_device_of
from lightning_merge.distributed import Share, ranks, sum_over_ranks
from lightning_merge.errors import DataError
from lightning_merge.progress import tracked


@torch.no_grad()
def reset_batchnorm(model: nn.Module, batches: Iterable[Any], progress: bool = False) -> int:
    """Sets the running statistics of every BatchNorm to those of `batches`.

    Merged networks carry statistics that neither ingredient had; estimating them anew
    undoes the variance collapse (Jordan et al. 2023, REPAIR; NP Merge, Sec. IV-A). Mean
    and (unbiased) variance of each batch are averaged over the batches, with equal
    weight. Only BatchNorm layers are in training mode meanwhile; dropout stays off, and
    modes, momenta and gradients are as before afterwards. SyncBatchNorm is treated as
    BatchNorm: batches are not mixed across ranks.

    Args:
        model: A network that takes one input; changed in place.
        batches: What a data loader gives: tensors, tuples or lists whose first item is the
            input, or dicts with `image`, `x` or `input`. Moved to the model's device. A
            `Share` holds those of this rank: the statistics are then averaged over all
            ranks' batches, each with equal weight, as a single process would (relative
            1e-5 in float32, where the order of the sums tells).
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
        if isinstance(layer, nn.SyncBatchNorm):
            # Ranks with different numbers of batches would wait for each other for ever.
            layer.__dict__["forward"] = partial(_BatchNorm.forward, layer)
    seen = 0
    try:
        for batch in tracked(batches, "BatchNorm reset", progress):
            model(to_device_of(model, inputs_of(batch)))
            seen += 1
        if isinstance(batches, Share) and ranks()[1] > 1:
            seen = _average_over_ranks(layers, seen)
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
            layer.__dict__.pop("forward", None)
        for module, mode in modes.items():
            module.training = mode
    return len(layers)


def _average_over_ranks(layers: list[_BatchNorm], seen: int) -> int:
    # A rank's statistics are means over the batches that it counted in that layer.
    held: list[Tensor] = [torch.tensor([seen], device=_statistics(layers[0])[0].device)]
    for layer in layers:
        mean, var, count = _statistics(layer)
        held += [mean.double() * count, var.double() * count, count]
    seen_by_all, *sums = sum_over_ranks(held)
    for layer, mean, var, count in zip(layers, sums[::3], sums[1::3], sums[2::3], strict=True):
        if count > 0:
            for old, new in zip(
                _statistics(layer), (mean / count, var / count, count), strict=True
            ):
                old.copy_(new)
    return int(seen_by_all)


def _statistics(layer: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    mean, var, count = layer.running_mean, layer.running_var, layer.num_batches_tracked
    assert mean is not None
    assert var is not None
    assert count is not None
    return mean, var, count
