"""A norm that normalises by its batches' own statistics, and pools them."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from lightning_merge.errors import DataError
from lightning_merge.recalibrate.pooled import Pooled, channel_moments

Norm = _BatchNorm | _InstanceNorm

_FUNCTIONS = {f: inspect.signature(f) for f in (F.batch_norm, F.instance_norm)}
_HALVES = (torch.float16, torch.bfloat16)
_SINGLE = (
    "BatchNorm reset: a batch gives a norm one value per channel, which has no variance; use "
    "batches of more examples"
)


class Observed:
    """What one layer, a BatchNorm or InstanceNorm that keeps running statistics, was given.

    `pool` has the statistics of so many `calls`. Values are pooled, or every batch counts once, as
    torch does it.
    """

    across_examples: ClassVar[bool] = True
    """Whether its statistics are those of all examples together."""
    unclear = False
    """Whether it cannot be told what they are: then they stay."""

    def __init__(self, layer: Norm, pooled: bool = True) -> None:
        assert layer.running_mean is not None
        self.layer = layer
        self.pooled = pooled
        self.device = layer.running_mean.device
        between = pooled and self.across_examples
        self.pool = Pooled.empty(layer.running_mean.numel(), self.device, between=between)
        self.calls = 0

    def run(self, code: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the layer's code gives, with its batch's own statistics, which are joined."""
        with _Call(self) as call:
            output = code(*args, **kwargs)
        if not call.caught:
            # A norm that computes by itself.
            value = next(iter((*args, *kwargs.values())))
            if value.shape[1] == self.pool.mean.numel():
                self.see(value)
        return output

    def see(self, value: Tensor) -> None:
        """Joins what the layer was given, `(N, C, ...)`."""
        if value.numel():
            self.add(*channel_moments(value, 1))

    def add(self, count: int, mean: Tensor, variance: Tensor, correction: int = 0) -> None:
        """Joins a batch of `count` values a channel, as `Pooled.add` does."""
        if self.pooled:
            self.pool.add(count, mean, variance, correction)
        elif count == 1:
            raise DataError(_SINGLE)
        else:
            self.pool.add(1, mean, variance * ((count - correction) / (count - 1)))
        self.calls += 1

    def normalised(self, call: inspect.BoundArguments) -> Tensor:
        """What `F.batch_norm` gives for its arguments, with the batch's own statistics."""
        given = call.arguments
        value: Tensor = given["input"]
        channels = value.shape[1]
        count = value.numel() // channels
        kind = torch.float32 if value.dtype in _HALVES else value.dtype
        for name in ("weight", "bias"):
            given[name] = None if given[name] is None else given[name].to(kind)
        if count > 1:
            given["running_mean"] = torch.zeros(channels, dtype=kind, device=value.device)
            given["running_var"] = torch.zeros(channels, dtype=kind, device=value.device)
            # With a momentum of 1 what is written there is the batch's alone.
            given["training"], given["momentum"] = True, 1.0
            output = F.batch_norm(*call.args, **call.kwargs)
            self.add(count, given["running_mean"], given["running_var"], correction=1)
            return output
        if count and not (self.pooled and self.pool.weight > 1):
            raise DataError(_SINGLE)
        # Alone it cannot be normalised; what came before can do that.
        given["running_mean"] = self.pool.mean.to(value.device, kind)
        given["running_var"] = (self.pool.spread / self.pool.weight).to(value.device, kind)
        given["training"] = False
        output = F.batch_norm(*call.args, **call.kwargs)
        self.see(value)
        return output

    def statistics(self, copies: int = 1) -> tuple[Tensor, Tensor, int]:
        """Mean, unbiased variance and number of batches; every value was counted `copies` times."""
        pool = self.pool
        free = pool.weight - copies if pool.between else pool.weight
        if free < 1:
            raise DataError(
                "BatchNorm reset: a norm was given one value per channel, which has no variance; "
                "give more examples"
            )
        return pool.mean, pool.spread / free, self.calls // copies

    def is_finite(self) -> bool:
        """Whether the layer can hold the statistics of what it was given."""
        assert self.layer.running_var is not None
        spread = self.pool.spread / max(1.0, self.pool.weight)
        kept = torch.stack([self.pool.mean, spread]).to(self.layer.running_var.dtype)
        return bool(kept.isfinite().all())

    def write(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Makes these the layer's running statistics."""
        layer = self.layer
        for buffer, value in ((layer.running_mean, mean), (layer.running_var, variance)):
            assert buffer is not None
            buffer.copy_(value.view_as(buffer))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(count)


class ObservedInstances(Observed):
    """What an InstanceNorm was given: the means of its instances' means and unbiased variances."""

    across_examples = False

    def normalised(self, call: inspect.BoundArguments) -> Tensor:
        """What `F.instance_norm` gives for its arguments, with each instance's own statistics."""
        given = call.arguments
        self.see(given["input"])
        given["use_input_stats"], given["running_mean"], given["running_var"] = True, None, None
        return F.instance_norm(*call.args, **call.kwargs)

    def see(self, value: Tensor) -> None:
        """Joins the instances of `(N, C, ...)`."""
        rows = value.detach().flatten(2)
        if rows.shape[2] < 2:
            raise DataError(
                "reset of statistics: an InstanceNorm is given one value per channel, which has "
                "no variance; use larger images"
            )
        if len(rows):
            variance, mean = torch.var_mean(rows.float() if rows.dtype in _HALVES else rows, dim=2)
            self.pool.add(len(rows) if self.pooled else 1, mean.mean(0), variance.mean(0))
            self.calls += 1


class _Call(TorchFunctionMode):
    """One call of a layer, in which its own normalisation is observed."""

    def __init__(self, observed: Observed) -> None:
        super().__init__()
        self.observed = observed
        self.caught = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func in _FUNCTIONS:
            call = _FUNCTIONS[func].bind(*args, **(kwargs or {}))
            call.apply_defaults()
            if call.arguments["running_mean"] is self.observed.layer.running_mean:
                self.caught = True
                return self.observed.normalised(call)
        return func(*args, **(kwargs or {}))


@contextmanager
def observing(observed: Observed) -> Iterator[None]:
    """Observes a layer; its statistics, mode and code are as before afterwards."""
    layer: nn.Module = observed.layer
    code: Any = layer.forward
    own = layer.__dict__.get("forward")
    before = {name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)}
    mode = layer.training

    def forward(*args: Any, **kwargs: Any) -> Any:
        return observed.run(code, args, kwargs)

    # In training mode it uses its batch's statistics; what it holds (dropout) stays as it is.
    # A synchronised norm would wait for ranks that have fewer batches, but not in eval mode.
    layer.training = not (
        isinstance(layer, nn.SyncBatchNorm)
        and distributed.is_available()
        and distributed.is_initialized()
    )
    layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        del layer.__dict__["forward"]
        if own is not None:
            layer.__dict__["forward"] = own
        layer.training = mode
        with torch.no_grad():
            for name, buffer in before.items():
                layer.get_buffer(name).copy_(buffer)
