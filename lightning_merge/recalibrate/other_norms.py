"""Norms that keep running statistics and are not torch's: timm's EvoNorm, a stranger's own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_merge.recalibrate.observed import Norm, Observed
from lightning_merge.recalibrate.pooled import Pooled
from lightning_merge.tensor_names import is_running_statistic

# How far the shares that a batch has in each channel's statistics may lie apart.
_APART = 1e-5


def own_statistics(layer: nn.Module) -> dict[str, Tensor]:
    """The running statistics of a layer that is no norm of torch's, by their names.

    Layers that are called frozen (`FrozenBatchNorm2d`) never estimate theirs.
    """
    if isinstance(layer, Norm) or "frozen" in type(layer).__name__.lower():
        return {}
    return {
        name: buffer
        for name, buffer in layer.named_buffers(recurse=False)
        if is_running_statistic(name) and buffer.is_floating_point() and not is_lazy(buffer)
    }


class OtherNorm(Observed):
    """What one such layer was given.

    Its own code tells what a batch's statistics are, whatever it calls its momentum: an update
    is `(1 - share) old + share batch`, so two of them, from zeros and from other values, give
    both share and batch. The means over all batches are kept, each with the number of its examples.

    A batch counts with the number of its examples if `pooled`, else once; `unclear` says whether
    updates are of another form.
    """

    def __init__(self, layer: nn.Module, pooled: bool = True) -> None:
        self.layer = layer  # type: ignore[assignment]
        self.pooled = pooled
        self.names = list(own_statistics(layer))
        start = self._read()
        self.device = start.device
        kinds = (layer.get_buffer(name).dtype for name in self.names)
        self.apart = max(_APART, *(4 * torch.finfo(kind).eps for kind in kinds))
        self.pool = Pooled.empty(start.numel(), self.device, between=False)
        self.calls = 0

    def run(self, code: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the layer's code gives, with its batch's own statistics, which are joined."""
        before = {name: b.clone() for name, b in self.layer.named_buffers(recurse=False)}
        start = self._read()

        def updated(values: Tensor) -> tuple[Any, Tensor]:
            for name, buffer in before.items():
                self.layer.get_buffer(name).copy_(buffer)
            self._put(values)
            return code(*args, **kwargs), self._read()

        given = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim)
        examples = len(next(given, ()))
        if not examples:
            return updated(start)[0]
        of_zeros = updated(torch.zeros_like(start))[1]
        probe = 1 + 2 * of_zeros.abs()
        shares = 1 - (updated(probe)[1] - of_zeros) / probe
        share = shares.median()
        alike = bool(((shares - share).abs() <= self.apart).all())
        if of_zeros.isfinite().all() and not (alike and share > self.apart):
            # One that is never updated is left as it is, in silence.
            self.unclear |= not alike or bool(of_zeros.any())
            return updated(start)[0]
        own = of_zeros / share
        output, again = updated(own)
        own += (again - own) / share
        self.pool.add(examples if self.pooled else 1, own, torch.zeros_like(own))
        self.calls += 1
        return output

    def is_finite(self) -> bool:
        """Whether the layer can hold the statistics of what it was given."""
        kinds = (self.layer.get_buffer(name).dtype for name in self.names)
        return all(bool(self.pool.mean.to(kind).isfinite().all()) for kind in kinds)

    def write(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Makes these means of its statistics the layer's own."""
        del variance, count
        self._put(mean)

    def _read(self) -> Tensor:
        buffers = [self.layer.get_buffer(name) for name in self.names]
        wide = torch.float32 if buffers[0].device.type == "mps" else torch.float64
        return torch.cat([buffer.detach().flatten().to(wide) for buffer in buffers])

    def _put(self, values: Tensor) -> None:
        buffers = [self.layer.get_buffer(name) for name in self.names]
        parts = values.split([buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
