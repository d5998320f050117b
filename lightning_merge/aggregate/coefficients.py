"""Task vectors under learned coefficients: W = P + sum_k c_k (W_k - P), differentiable in c.

Yang et al. 2024, "AdaMerging": one c for each task, or for each task and layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_merge.aggregate.flat import FlatLayout


def add_vectors_(
    out: Tensor, coefficients: Tensor, buffers: Sequence[Tensor], layout: FlatLayout
) -> Tensor:
    """Writes `P + sum_k c_k (W_k - P)` into `out`, `(n,)`, and returns it.

    Coefficients are `(K, 1)`, one for each task vector, or `(K, slots)`, also for each tensor. The
    buffers, `(n,)` each, are P and then the K fine-tuned networks.
    """
    views = [layout.views(buffer) for buffer in buffers]
    for index, target in enumerate(layout.views(out)):
        start = _wide(views[0][index])
        total = start.clone()
        for own, end in zip(_column(coefficients, index), views[1:], strict=True):
            total.addcmul_(_wide(end[index]) - start, own.to(total.dtype))
        target.copy_(total)
    return out


def weights_of_coefficients(
    coefficients: Tensor, buffers: Sequence[Tensor], out: Tensor, layout: FlatLayout
) -> tuple[Tensor, ...]:
    """The merged weights as views of `out`, through which gradients reach `coefficients`.

    A step needs no more memory than `out` and two copies of the largest tensor.

    The coefficients and the buffers, which are constants, are those of `add_vectors_`; `out`,
    `(n,)`, holds the result and is written over. There is a tensor for each slot of `layout`.
    """
    weights: tuple[Tensor, ...] = _WeightsOfCoefficients.apply(coefficients, (buffers, out), layout)
    return weights


class _WeightsOfCoefficients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        coefficients: Tensor,
        buffers: tuple[Sequence[Tensor], Tensor],
        layout: FlatLayout,
    ) -> tuple[Tensor, ...]:
        # In a tuple, out of autograd's sight: it forbids to change views of an input.
        ingredients, out = buffers
        ctx.like = coefficients.detach()
        ctx.ingredients = ingredients
        ctx.layout = layout
        ctx.set_materialize_grads(False)
        add_vectors_(out, ctx.like, ingredients, layout)
        return layout.untracked(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        result = torch.zeros_like(ctx.like)
        views = [ctx.layout.views(buffer) for buffer in ctx.ingredients]
        for index, grad in enumerate(grads):
            if grad is None:
                continue
            start, wide = _wide(views[0][index]), _wide(grad)
            for own, end in zip(_column(result, index), views[1:], strict=True):
                own += ((_wide(end[index]) - start) * wide).sum()
        return result, None, None


def _column(coefficients: Tensor, index: int) -> Tensor:
    """The K coefficients of a slot, a view."""
    return coefficients[:, index if coefficients.shape[1] > 1 else 0]


def _wide(tensor: Tensor) -> Tensor:
    # Half the bits cannot hold what small task vectors add up to.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
