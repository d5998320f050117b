"""InMerge: kernels of one network that are alike are merged while it is trained.

Wang et al. 2025, "In-Model Merging for Enhancing the Robustness of Medical Imaging Classification
Models" (arXiv 2502.20516).
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_merge.aggregate.name_weights import compiled
from lightning_merge.errors import ConfigError


class InModelMerging(Callback):
    """Pulls kernels of convolutions towards others of their layer, before every optimizer step.

    Each kernel, with a probability, draws a partner among the layer's other kernels; where their
    cosine is above a threshold, it becomes `share` of itself and `1 - share` of the partner, as
    both were before. It happens when the first batch of a step starts, so that gradients are those
    of the merged weights. Layers that are frozen are left alone. The paper does so while a trained
    network is trained on for 10 epochs.

    The draws are this callback's own, the same on every rank; no random number that training
    draws is another for it. They go on where a run is resumed from a checkpoint.

    Args:
        probability: With which a kernel draws a partner.
        threshold: The cosine above which two kernels are merged.
        share: How much of a kernel stays its own.
        skip: How many convolutions, in the order in which the module lists them, are left alone.
        layers: A regular expression: convolutions in whose names it is not found are left alone
            as well. The paper takes the second one of each block of a ResNet: `conv2$`.
        seed: Of the draws.

    Attributes:
        merged: How many kernels have been merged.

    Raises:
        ConfigError: If a number is out of range, `layers` is no regular expression, or (when
            training starts) no layer is left, or one's weight is no parameter of its own.
    """

    def __init__(
        self,
        probability: float = 0.3,
        threshold: float = 0.3,
        share: float = 0.8,
        skip: int = 10,
        layers: str | None = None,
        seed: int = 0,
    ) -> None:
        if not (0 <= probability <= 1 and 0 <= share <= 1 and -1 <= threshold <= 1):
            raise ConfigError(
                f"InModelMerging: probability {probability}, share {share} or threshold {threshold}"
                " is out of range; choose 0.3, 0.8 and 0.3, for example"
            )
        self.probability, self.threshold, self.share = probability, threshold, share
        self.skip, self.layers = skip, layers
        self._named = compiled(layers or "", "InModelMerging: layers")
        self.merged = 0
        self._draws = torch.Generator().manual_seed(seed)
        self._weights: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the layers."""
        del trainer
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        found = [(n, m) for n, m in pl_module.named_modules() if isinstance(m, kinds)]
        chosen = {n: layer for n, layer in found[self.skip :] if self._named.search(n)}
        if not chosen:
            raise ConfigError(
                f"InModelMerging: of {len(found)} convolutions none is left behind the first "
                f"{self.skip}" + (f" with '{self.layers}' in its name" if self.layers else "")
            )
        for name, layer in chosen.items():
            if "weight" not in layer._parameters:
                raise ConfigError(
                    f"InModelMerging: '{name}' computes its weight (a parametrization, a norm of "
                    "weights, pruning), so that what is merged would be lost: remove that first, "
                    "or leave the layer out with `layers`"
                )
        # Layers may share one.
        self._weights = list(dict.fromkeys(layer.weight for layer in chosen.values()))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Merges, where a step begins."""
        del pl_module, batch
        if batch_idx % trainer.accumulate_grad_batches == 0:
            for weight in self._weights:
                if weight.requires_grad:
                    self._merge(weight)

    @torch.no_grad()
    def _merge(self, weight: Tensor) -> None:
        count = len(weight)
        draws = torch.rand(count, generator=self._draws) < self.probability
        # Any other kernel: a step of 1 to count - 1 around the circle of all.
        steps = torch.randint(1, max(count, 2), (count,), generator=self._draws)
        partners = ((torch.arange(count) + steps) % count).to(weight.device)
        old = weight.detach().flatten(1)
        cosines = nn.functional.cosine_similarity(old, old[partners])
        chosen = draws.to(weight.device) & (cosines > self.threshold)
        mixed = self.share * old + (1 - self.share) * old[partners]
        weight.copy_(torch.where(chosen[:, None], mixed, old).view_as(weight))
        self.merged += int(chosen.sum())

    def state_dict(self) -> dict[str, Any]:
        """Where the draws are, and how many kernels were merged."""
        return {"draws": self._draws.get_state(), "merged": self.merged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them back."""
        self._draws.set_state(state_dict["draws"].cpu())
        self.merged = state_dict["merged"]
