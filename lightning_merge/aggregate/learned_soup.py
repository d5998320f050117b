"""NP Merge's aggregation: W = alpha * A + (1 - alpha) * B with alpha = sigmoid(logits).

Non-Uniform Parameter-Wise Model Merging (2024), Eq. 2 and Sec. III-D. One pass over the
flat buffers gives the weights, one gives the gradient of the logits. More than two
ingredients have a softmax over them in the sigmoid's place.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_merge.aggregate.flat import FlatLayout

# A megabyte of float32 for each operand: what an operation on the CPU leaves in the cache is
# there for the next one, so a chain of them moves memory once. On a GPU it is eight: its cache is
# larger, and so is what a call costs.
_CPU_BLOCK, _GPU_BLOCK = 1 << 18, 1 << 21

# From here on a copy costs more than the call that it saves.
_LARGE = 1 << 14


class GradientBuffer:
    """Memory for the gradient of the logits, the same step after step.

    From a merge to its gradient it holds the slopes, by which the weights' gradient is then
    multiplied where they lie: written while all that they are made of is in the cache, they spare
    the backward pass most of what it would read.
    """

    def __init__(self, logits: Tensor) -> None:
        self.memory = torch.empty_like(logits, requires_grad=False)
        self._slopes_of: object = None

    def for_slopes(self, of: object) -> Tensor | None:
        """Where the slopes of a merge are to lie; None while somebody holds an earlier gradient."""
        if self._is_held():
            return None
        self._slopes_of = of
        return self.memory

    def taken(self, of: object) -> Tensor | None:
        """The slopes of a merge, which the caller writes over; None if they are not here."""
        if self._slopes_of is not of:
            return None
        self._slopes_of = None
        return self.memory

    def for_gradient(self) -> Tensor | None:
        """Memory to write a gradient into; None while it holds slopes, or somebody a gradient."""
        return None if self._slopes_of is not None or self._is_held() else self.memory

    def _is_held(self) -> bool:
        # By `logits.grad` while it is being accumulated, or by whoever asked for a gradient. One
        # use is ours, and one that of the storage's object here.
        storage = self.memory.untyped_storage()
        return torch._C._storage_Use_Count(storage._cdata) > 2


def interpolate_flat_(
    out: Tensor, logits: Tensor, a: Tensor, b: Tensor, slopes: Tensor | None = None
) -> Tensor:
    """Writes `sigmoid(logits) * a + (1 - sigmoid(logits)) * b` into `out`, and returns it.

    All are of shape `(n,)`. Where the logits are 0 it is exactly the mean, rounded once. The
    derivatives by the logits go into `slopes`, where that is given; all types are then the same.
    """
    blocks = _blocks(out)
    dtype = torch.promote_types(out.dtype, torch.float32)
    scratch = out.new_empty(blocks[0].stop if blocks else 0, dtype=dtype)
    for part in blocks:
        block = out[part]
        other = scratch[: len(block)]
        torch.sigmoid(logits[part], out=block)
        if slopes is not None:
            _slopes_(slopes[part], block, a[part], b[part], other)
        # Both products: the difference of the ingredients, as in lerp, would be rounded.
        second = b[part].to(dtype)
        torch.addcmul(second, block.to(dtype), second, value=-1, out=other)
        torch.addcmul(other, block, a[part], out=block)
    return out


def combine_flat_(out: Tensor, logits: Tensor, ingredients: Sequence[Tensor]) -> Tensor:
    """Writes `sum_k softmax(logits)_k * ingredients_k` into `out`, `(n,)`, and returns it.

    The logits are `(K, n)`, the K ingredients `(n,)` each.
    """
    # Shares of sixteen bits would not add up to 1.
    dtype = torch.promote_types(out.dtype, torch.float32)
    for part in _blocks(out):
        alphas = torch.softmax(logits[:, part], dim=0).to(dtype)
        total = out[part] if out.dtype == dtype else torch.empty_like(alphas[0])
        torch.mul(alphas[0], ingredients[0][part].to(dtype), out=total)
        for alpha, ingredient in zip(alphas[1:], ingredients[1:], strict=True):
            total.addcmul_(alpha, ingredient[part].to(dtype))
        if out.dtype != dtype:
            out[part] = total
    return out


def logits_gradient_(out: Tensor, grad: Tensor, logits: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Writes the gradient of the logits into `out`, from that of the weights, and returns it.

    The chain rule of Eq. 2: `grad * (a - b) * alpha * (1 - alpha)`. All are of shape `(n,)`, and
    `out` may be `grad`.
    """
    blocks = _blocks(out)
    # Memory that is new costs more than what is computed in it: the same for all blocks.
    scratch = out.new_empty(2, blocks[0].stop if blocks else 0)
    for part in blocks:
        block = out[part]
        alpha, slopes = scratch[:, : len(block)]
        torch.sigmoid(logits[part], out=alpha)
        _slopes_(slopes, alpha, a[part], b[part], slopes)
        torch.mul(grad[part], slopes, out=block)
    return out


def _slopes_(out: Tensor, alpha: Tensor, a: Tensor, b: Tensor, scratch: Tensor) -> None:
    torch.sub(a, b, out=scratch)
    torch.ops.aten.sigmoid_backward.grad_input(scratch, alpha, grad_input=out)


def joint_logits_gradient_(
    out: Tensor, grad: Tensor, logits: Tensor, ingredients: Sequence[Tensor]
) -> Tensor:
    """The same for K ingredients: `grad * alpha_k * (ingredient_k - W)`.

    `out` and the logits are `(K, n)`, everything else `(n,)`; `out[0]` may be `grad`.
    """
    for part in _blocks(grad):
        alphas = torch.softmax(logits[:, part], dim=0)
        weights = torch.stack([ingredient[part] for ingredient in ingredients]).to(out.dtype)
        mean = (alphas * weights).sum(dim=0)
        out[:, part] = weights.sub_(mean).mul_(alphas).mul_(grad[part])
    return out


def merge_flat_(
    out: Tensor, logits: Tensor, ingredients: Sequence[Tensor], slopes: Tensor | None = None
) -> Tensor:
    """`interpolate_flat_` of two ingredients for logits `(n,)`, `combine_flat_` for `(K, n)`."""
    if logits.dim() == 1:
        a, b = ingredients
        return interpolate_flat_(out, logits, a, b, slopes)
    return combine_flat_(out, logits, ingredients)


def merged_weights(
    logits: Tensor,
    ingredients: Sequence[Tensor],
    out: Tensor,
    layout: FlatLayout,
    gradient: GradientBuffer | None = None,
) -> tuple[Tensor, ...]:
    """The merged weights as views of `out`, through which gradients reach `logits`.

    Args:
        logits: The alphas before the sigmoid, of shape `(n,)`, or before the softmax over K
            ingredients, `(K, n)`, requiring a gradient.
        ingredients: Their weights, of shape `(n,)` each; constants.
        out: The buffer that holds the result, of shape `(n,)`; written over.
        layout: The tensors inside the buffers.
        gradient: Where the gradient of the logits is to lie; new memory where it is not given,
            and while somebody holds an earlier gradient in it.
    """
    buffers = (list(ingredients), out, gradient)
    weights: tuple[Tensor, ...] = _MergedWeights.apply(logits, buffers, layout)
    return weights


class _MergedWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        buffers: tuple[list[Tensor], Tensor, GradientBuffer | None],
        layout: FlatLayout,
    ) -> tuple[Tensor, ...]:
        # The buffers come in a tuple, out of autograd's sight: as arguments, the views
        # returned below would be views of an input, which it tracks and forbids to change.
        ingredients, out, gradient = buffers
        # Not saved by autograd, which frees it: a re-entrant checkpoint comes through here for each
        # of its parts.
        ctx.logits = logits.detach()
        ctx.ingredients = ingredients
        ctx.gradient = gradient
        ctx.layout = layout
        ctx.set_materialize_grads(False)
        # Not the context itself, which cannot be copied with a module that holds the buffer.
        ctx.token, slopes = object(), None
        if gradient is not None and logits.dim() == 1 and logits.dtype == out.dtype:
            slopes = gradient.for_slopes(ctx.token)
        merge_flat_(out, ctx.logits, ingredients, slopes)
        return layout.untracked(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, buffer = ctx.logits, ctx.gradient
        if buffer is not None and (slopes := buffer.taken(ctx.token)) is not None:
            for view, grad in zip(ctx.layout.views(slopes), grads, strict=True):
                view.zero_() if grad is None else view.mul_(grad)
            # A tensor of its own: autograd copies one that somebody else holds.
            return slopes.view_as(logits), None, None
        result = None if buffer is None else buffer.for_gradient()
        result = torch.empty_like(logits) if result is None else result.view_as(logits)
        joint = logits.dim() == 2
        for start, stop, grad in _runs(ctx.layout, grads, result[0] if joint else result):
            part = slice(start, stop)
            own = [ingredient[part] for ingredient in ctx.ingredients]
            if joint:
                joint_logits_gradient_(result[:, part], grad, logits[:, part], own)
            else:
                logits_gradient_(result[part], grad, logits[part], *own)
        return result, None, None


def _runs(
    layout: FlatLayout, grads: Sequence[Tensor | None], buffer: Tensor
) -> Iterator[tuple[int, int, Tensor]]:
    """The gradients as flat pieces `(start, stop, piece)` that cover the layout.

    A large gradient is taken where it lies, in the cache perhaps; small ones, and those of
    another type or memory format, are first gathered in `buffer`.
    """
    start = 0
    for slot, grad in zip(layout.slots, grads, strict=True):
        stop = slot.offset + slot.size
        if (
            grad is not None
            and slot.size >= _LARGE
            and grad.device.type == "cpu"
            and grad.dtype == buffer.dtype
            and grad.stride() == slot.stride
        ):
            if start < slot.offset:
                yield start, slot.offset, buffer[start : slot.offset]
            yield slot.offset, stop, grad.as_strided((slot.size,), (1,))
            start = stop
            continue
        view = buffer.as_strided(slot.shape, slot.stride, buffer.storage_offset() + slot.offset)
        if grad is None:
            view.zero_()
        else:
            view.copy_(grad)
    if start < layout.size:
        yield start, layout.size, buffer[start:]


def _blocks(buffer: Tensor) -> list[slice]:
    size = _CPU_BLOCK if buffer.device.type == "cpu" else _GPU_BLOCK
    return [slice(i, i + size) for i in range(0, buffer.shape[-1], size)]
