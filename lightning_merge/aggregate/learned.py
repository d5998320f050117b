"""NP Merge's aggregation: W = alpha * A + (1 - alpha) * B with alpha = sigmoid(logits).

Non-Uniform Parameter-Wise Model Merging (2024), Eq. 2 and Sec. III-D. One pass over the
flat buffers gives the weights, one gives the gradient of the logits.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_merge.aggregate.flat import FlatLayout

# A megabyte of float32 for each operand: what an operation on the CPU leaves in the cache is
# there for the next one, so a chain of them moves memory once.
_CPU_BLOCK = 1 << 18


def interpolate_flat_(out: Tensor, logits: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Writes `sigmoid(logits) * a + (1 - sigmoid(logits)) * b` into `out`.

    Args:
        out: Where to, of shape `(n,)`.
        logits: The alphas before the sigmoid, of shape `(n,)`.
        a: The first ingredient's weights, of shape `(n,)`.
        b: The second ingredient's aligned weights, of shape `(n,)`.

    Returns:
        `out`.
    """
    for part in _blocks(out):
        alpha = torch.sigmoid(logits[part]).to(a.dtype)
        torch.lerp(b[part], a[part], alpha, out=out[part])
    return out


def logits_gradient_(grad: Tensor, logits: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Turns the gradient of the weights into that of the logits, in place.

    The chain rule of Eq. 2: `grad * (a - b) * alpha * (1 - alpha)`.

    Args:
        grad: The loss's gradient at the merged weights, of shape `(n,)`; written over.
        logits: The alphas before the sigmoid, of shape `(n,)`.
        a: The first ingredient's weights, of shape `(n,)`.
        b: The second ingredient's aligned weights, of shape `(n,)`.

    Returns:
        `grad`.
    """
    for part in _blocks(grad):
        difference = a[part].sub(b[part]).to(grad.dtype).mul_(grad[part])
        alpha = torch.sigmoid(logits[part])
        torch.ops.aten.sigmoid_backward.grad_input(difference, alpha, grad_input=grad[part])
    return grad


def interpolated_weights(
    logits: Tensor, a: Tensor, b: Tensor, out: Tensor, layout: FlatLayout
) -> tuple[Tensor, ...]:
    """The merged weights as views of `out`, through which gradients reach `logits`.

    Args:
        logits: The alphas before the sigmoid, of shape `(n,)`, requiring a gradient.
        a: The first ingredient's weights, of shape `(n,)`; a constant.
        b: The second ingredient's aligned weights, of shape `(n,)`; a constant.
        out: The buffer that holds the result, of shape `(n,)`; written over.
        layout: The tensors inside the buffers.

    Returns:
        One tensor for each slot of `layout`.
    """
    weights: tuple[Tensor, ...] = _InterpolatedWeights.apply(logits, (a, b, out), layout)
    return weights


class _InterpolatedWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, buffers: tuple[Tensor, Tensor, Tensor], layout: FlatLayout
    ) -> tuple[Tensor, ...]:
        # The buffers come in a tuple, out of autograd's sight: as arguments, the views
        # returned below would be views of an input, which it tracks and forbids to change.
        a, b, out = buffers
        ctx.save_for_backward(logits)
        ctx.ingredients = (a, b)
        ctx.layout = layout
        ctx.set_materialize_grads(False)
        return layout.views(interpolate_flat_(out, logits.detach(), a, b))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        flat = torch.empty_like(logits)
        for view, grad in zip(ctx.layout.views(flat), grads, strict=True):
            if grad is None:
                view.zero_()
            else:
                view.copy_(grad)
        return logits_gradient_(flat, logits, *ctx.ingredients), None, None


def _blocks(buffer: Tensor) -> list[slice]:
    if buffer.device.type != "cpu":
        return [slice(0, buffer.numel())]
    return [slice(i, i + _CPU_BLOCK) for i in range(0, buffer.numel(), _CPU_BLOCK)]
