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


def interpolate_flat_(out: Tensor, logits: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Writes `sigmoid(logits) * a + (1 - sigmoid(logits)) * b` into `out`, and returns it.

    All are of shape `(n,)`. Where the logits are 0 it is exactly the mean, rounded once.
    """
    blocks = _blocks(out)
    dtype = torch.promote_types(out.dtype, torch.float32)
    scratch = out.new_empty(blocks[0].stop if blocks else 0, dtype=dtype)
    for part in blocks:
        block = out[part]
        other = scratch[: len(block)]
        torch.sigmoid(logits[part], out=block)
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
    scratch = out.new_empty(blocks[0].stop if blocks else 0)
    for part in blocks:
        block = out[part]
        other = scratch[: len(block)]
        torch.sigmoid(logits[part], out=other)
        torch.ops.aten.sigmoid_backward.grad_input(grad[part], other, grad_input=block)
        torch.sub(a[part], b[part], out=other)
        block.mul_(other)
    return out


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


def merge_flat_(out: Tensor, logits: Tensor, ingredients: Sequence[Tensor]) -> Tensor:
    """`interpolate_flat_` of two ingredients for logits `(n,)`, `combine_flat_` for `(K, n)`."""
    if logits.dim() == 1:
        return interpolate_flat_(out, logits, *ingredients)
    return combine_flat_(out, logits, ingredients)


def merged_weights(
    logits: Tensor,
    ingredients: Sequence[Tensor],
    out: Tensor,
    layout: FlatLayout,
    gradient: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The merged weights as views of `out`, through which gradients reach `logits`.

    Args:
        logits: The alphas before the sigmoid, of shape `(n,)`, or before the softmax over K
            ingredients, `(K, n)`, requiring a gradient.
        ingredients: Their weights, of shape `(n,)` each; constants.
        out: The buffer that holds the result, of shape `(n,)`; written over.
        layout: The tensors inside the buffers.
        gradient: Where the gradient of the logits is to lie, of their shape, step after step;
            new memory where it is not given, and while `logits.grad` is being accumulated.
    """
    buffers = (list(ingredients), out, gradient)
    weights: tuple[Tensor, ...] = _MergedWeights.apply(logits, buffers, layout)
    return weights


class _MergedWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        buffers: tuple[list[Tensor], Tensor, Tensor | None],
        layout: FlatLayout,
    ) -> tuple[Tensor, ...]:
        # The buffers come in a tuple, out of autograd's sight: as arguments, the views
        # returned below would be views of an input, which it tracks and forbids to change.
        ingredients, out, gradient = buffers
        ctx.save_for_backward(logits)
        ctx.ingredients = ingredients
        ctx.gradient = gradient
        ctx.layout = layout
        ctx.set_materialize_grads(False)
        merge_flat_(out, logits.detach(), ingredients)
        return layout.untracked(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        if ctx.gradient is None or (logits.is_leaf and logits.grad is not None):
            result = torch.empty_like(logits)
        else:
            # A tensor of its own: autograd copies one that somebody else holds.
            result = ctx.gradient.view_as(logits)
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
