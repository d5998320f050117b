"""Ensembles of logits and of features: what merges are compared with, at N times the cost.

Rethinking Weight-Averaged Model-merging (Wang et al.), Sec. 4 and supplementary Sec. 8.
"""

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_merge.aggregate import average
from lightning_merge.errors import ConfigError
from lightning_merge.modules.adopt import adopt
from lightning_merge.modules.batched_networks import BatchedNetworks, faster_batched
from lightning_merge.modules.last_layer import last_layer, take_off


class EnsembleModule(LightningModule):
    """Tests and predicts with the mean of what several modules' `forward` gives.

    It takes over the first module's class, steps and metrics, so it can be handed to
    `Trainer.test` and `Trainer.predict` as that module could. Steps that call
    `self(...)` see the ensemble's output; a test whose steps never do is refused.

    Args:
        modules: N trained modules of one class; they become the ensemble's own.
        batched: Whether they are evaluated as one batched computation, which needs evaluation
            mode (otherwise one after the other). By default where that is faster.

    Raises:
        ConfigError: If there are none, or they are of different classes.
    """

    others: nn.ModuleList

    def __init__(self, modules: Sequence[LightningModule], batched: bool | None = None) -> None:
        _check(modules)
        holds = next(chain(modules[0].parameters(), modules[0].buffers()), None) is not None
        wanted = faster_batched(modules[0]) if batched is None else batched
        adopt(self, modules[0])
        self.others = nn.ModuleList(modules[1:])
        self._evaluated = False
        self._batched = wanted and holds and len(modules) > 1
        self._must_batch = batched is True
        self._stacked: BatchedNetworks | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The mean output of the N modules."""
        self._evaluated = True
        if self._batched and not any(layer.training for layer in self.modules()):
            try:
                if self._stacked is None:
                    self._stacked = BatchedNetworks([self, *self.others])
                return self._stacked(*args, **kwargs).mean(dim=0)
            except (RuntimeError, ValueError):
                # Not every network can be batched: one may look at its values, for example.
                if self._must_batch:
                    raise
                self._batched, self._stacked = False, None
        outputs = [super().forward(*args, **kwargs)]
        outputs += [module(*args, **kwargs) for module in self.others]
        return torch.stack(outputs).mean(dim=0)

    def on_test_end(self) -> None:
        """The module's own hook, and a check that the ensemble was evaluated.

        Raises:
            ConfigError: If no step called `self(...)`.
        """
        super().on_test_end()
        if not self._evaluated:
            raise ConfigError(
                "an ensemble cannot be tested by a test_step that does not call self(...): call "
                "self(x) there, not a part of the module"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> "EnsembleModule":
        # Tensors that move are views of the stacked ones no longer.
        self._stacked = None
        super()._apply(fn, recurse)
        return self


class FeatureEnsembleModule(EnsembleModule):
    """Tests and predicts with one last layer on the mean of several modules' features.

    Args:
        modules: N trained modules of one class; they become the ensemble's own, without
            their last layers.
        example: What `forward` takes, two examples are enough; with it the last layer is
            found.
        head: `merged` is the mean of the last layers ("Ens Features"), `first` the first
            module's ("Ens Features*"); with that the heads may be of different sizes.
        batched: As in `EnsembleModule`.

    Raises:
        ConfigError: If there are no modules, they are of different classes, their output is
            not that of one linear layer, or layers to be averaged differ in shape.
    """

    ensemble_head: nn.Module

    def __init__(
        self,
        modules: Sequence[LightningModule],
        example: Tensor,
        head: Literal["merged", "first"] = "merged",
        batched: bool | None = None,
    ) -> None:
        _check(modules)
        name = last_layer(modules[0], example)
        shapes = {tuple(module.get_parameter(f"{name}.weight").shape) for module in modules}
        if head == "merged" and len(shapes) > 1:
            raise ConfigError(
                f"last layers of shapes {sorted(shapes)} cannot be averaged: use that of the "
                "first module, head='first'"
            )
        layers = [take_off(module, name) for module in modules]
        super().__init__(modules, batched)
        self.ensemble_head = layers[0] if head == "first" else _mean(layers)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The last layer's output for the mean features of the N modules."""
        return self.ensemble_head(super().forward(*args, **kwargs))


def _check(modules: Sequence[LightningModule]) -> None:
    if not modules:
        raise ConfigError("an ensemble needs at least one module; give some")
    kinds = {type(module) for module in modules}
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ConfigError(f"an ensemble's modules must be of one class, not {names}")


def _mean(layers: Sequence[nn.Module]) -> nn.Module:
    merged = copy.deepcopy(layers[0])
    merged.load_state_dict(average([layer.state_dict() for layer in layers]))
    return merged
