"""The parameters of a pre-trained network and of fine-tuned ones, mixed by coefficients."""

import torch
from torch import Tensor

from lightning_merge.aggregate.coefficients import add_vectors_, weights_of_coefficients
from lightning_merge.checkpoint import StateDict
from lightning_merge.modules.merging.flat_ingredients import FlatIngredients


class FlatTaskVectors(FlatIngredients):
    """A pre-trained network P and K fine-tuned ones; the logits are the coefficients themselves.

    Each coefficient is bounded in [0, 1] alone: one that a step took beyond is set back to the
    bound before it is used, and may return (projected gradients).
    """

    def initial_logits(self, alpha: float | None) -> Tensor:
        """Coefficients that are all `alpha`, 0 if not given: `(K, 1)` or `(K, slots)`."""
        assert self._segments is not None
        shape = len(self.buffers) - 1, len(self._segments)
        return torch.full(shape, alpha or 0.0, dtype=self._logit_type)

    def traced(self, logits: Tensor) -> tuple[Tensor, ...]:
        """The merged parameters, through which gradients reach the coefficients."""
        _bound_(logits)
        return weights_of_coefficients(logits, self.buffers, self.merged, self.layout)

    def refresh(self, logits: Tensor) -> None:
        """Writes what the coefficients make of the ingredients into `merged`."""
        with torch.no_grad():
            add_vectors_(self.merged, _bound_(logits), self.buffers, self.layout)

    def alphas_by_ingredient(self, logits: Tensor) -> list[StateDict]:
        """Each fine-tuned network's coefficients by name, all alike within a tensor."""
        slots = self.layout.slots
        with torch.no_grad():
            own = _bound_(logits).expand(-1, len(slots)).to(self.layout.dtype)
            return [
                {slot.name: one.expand(slot.shape) for slot, one in zip(slots, row, strict=True)}
                for row in own
            ]


def _bound_(logits: Tensor) -> Tensor:
    with torch.no_grad():
        return logits.clamp_(0, 1)
