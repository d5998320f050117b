"""The parameters that a MergeModule learns to mix: ingredients and merge in flat buffers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.aggregate.flat import FlatLayout
from lightning_merge.aggregate.learned_soup import GradientBuffer, merge_flat_, merged_weights
from lightning_merge.checkpoint import StateDict


class FlatIngredients:
    """K ingredients, one flat buffer each, and the buffer of their merge.

    Two ingredients have one logit for each alpha (a sigmoid), more have K (a softmax).

    `layout` says where each parameter lies, `buffers` are the ingredients, K of shape `(size,)`,
    and `merged`, `(size,)`, is what the alphas make of them.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], states: Sequence[StateDict], granularity: str
    ) -> None:
        self.layout = FlatLayout(parameters)
        self.buffers = [self.layout.flatten(state) for state in states]
        self.merged = torch.empty_like(self.buffers[0])
        self._segments = (
            None if granularity == "parameter" else torch.tensor(self.layout.segments(granularity))
        )
        self._gradient: GradientBuffer | None = None

    def initial_logits(self, alpha: float | None) -> Tensor:
        """Logits that give the first ingredient a share of `alpha`, the others the rest.

        `alpha` is between 0 and 1; all have the same share if it is not given. Of two ingredients
        and n alphas `(n,)`, of more `(K, n)`.
        """
        count = self.layout.size if self._segments is None else len(self._segments)
        others = len(self.buffers) - 1
        share = 1 / (others + 1) if alpha is None else alpha
        dtype = self._logit_type
        if others == 1:
            return torch.logit(torch.tensor(share, dtype=dtype)).repeat(count)
        shares = torch.tensor([share] + [(1 - share) / others] * others, dtype=dtype)
        return (shares / shares[-1]).log()[:, None].repeat(1, count)

    def traced(self, logits: Tensor) -> tuple[Tensor, ...]:
        """The merged parameters, through which gradients reach the logits."""
        flat = self._flat(logits)
        # A GPU's allocator has memory at hand; the system's hands out pages one by one.
        if self._gradient is None and flat.is_cpu:
            self._gradient = GradientBuffer(flat)
        return merged_weights(flat, self.buffers, self.merged, self.layout, self._gradient)

    def refresh(self, logits: Tensor) -> None:
        """Writes what the logits make of the ingredients into `merged`."""
        with torch.no_grad():
            merge_flat_(self.merged, self._flat(logits), self.buffers)

    def alphas(self, logits: Tensor) -> StateDict:
        """The alpha of every element of every parameter, by name.

        For two ingredients the first one's shares, in the parameters' shapes; for K the shares of
        all, `(K, ...)`, whose sums over the first axis are 1.
        """
        found = self.alphas_by_ingredient(logits)
        if len(found) == 1:
            return found[0]
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    def alphas_by_ingredient(self, logits: Tensor) -> list[StateDict]:
        """The alphas in the parameters' shapes, by name: of two ingredients the first one's."""
        with torch.no_grad():
            flat, dtype = self._flat(logits), self.layout.dtype
            two = len(self.buffers) == 2
            shares = [torch.sigmoid(flat)] if two else torch.softmax(flat, 0)
            return [self.layout.named_views(one.to(dtype).contiguous()) for one in shares]

    def views(self) -> list[StateDict]:
        """The ingredients' parameters by name, sharing the buffers."""
        return [self.layout.named_views(buffer) for buffer in self.buffers]

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Moves or converts the buffers as a module's tensors are."""
        self.buffers = [fn(buffer) for buffer in self.buffers]
        self.merged = fn(self.merged)
        self.layout.dtype = self.merged.dtype
        if self._segments is not None:
            self._segments = self._segments.to(self.merged.device)
        self.release()

    def release(self) -> None:
        """Gives the gradient's buffer back: nothing is being trained."""
        self._gradient = None

    @property
    def _logit_type(self) -> torch.dtype:
        # Shares of 32 bits add up to no more than their own 1: too few digits for float64.
        return torch.promote_types(self.layout.dtype, torch.float32)

    def _flat(self, logits: Tensor) -> Tensor:
        if self._segments is None:
            return logits
        spread: Tensor = _Spread.apply(logits, self._segments, self.layout.size)
        return spread


class _Spread(torch.autograd.Function):
    # `repeat_interleave`, with nothing that autograd frees after the first of several passes.
    @staticmethod
    def forward(ctx: Any, logits: Tensor, segments: Tensor, size: int) -> Tensor:
        ctx.segments, ctx.shape = segments, logits.shape
        return logits.repeat_interleave(segments, dim=-1, output_size=size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        places = torch.repeat_interleave(ctx.segments)
        return grads[0].new_zeros(ctx.shape).index_add_(-1, places, grads[0]), None, None


def parameter_places(
    module: nn.Module, merged: Iterable[str]
) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every place that holds each merged parameter, by name; tied ones have several.

    A place is a submodule and the name of its attribute.
    """
    names = {id(module.get_parameter(name)): name for name in merged}
    found: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names.values()}
    for owner in module.modules():
        for attribute, parameter in owner._parameters.items():
            if id(parameter) in names:
                found[names[id(parameter)]].append((owner, attribute))
    return found
