"""The ensemble of logits: the bound that merges are held against, at N times the cost."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_merge.errors import ConfigError
from lightning_merge.modules.adopt import adopt


class EnsembleModule(LightningModule):
    """Tests and predicts with the mean of what several modules' `forward` gives.

    It takes over the first module's class, steps and metrics, so it can be handed to
    `Trainer.test` and `Trainer.predict` as that module could. Steps that call
    `self(...)` see the ensemble's output; a test whose steps never do is refused.

    Args:
        modules: N trained modules of one class; they become the ensemble's own.

    Raises:
        ConfigError: If there are none, or they are of different classes.
    """

    others: nn.ModuleList

    def __init__(self, modules: Sequence[LightningModule]) -> None:
        if not modules:
            raise ConfigError("an ensemble needs at least one module; give some")
        kinds = {type(module) for module in modules}
        if len(kinds) > 1:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ConfigError(f"an ensemble's modules must be of one class, not {names}")
        adopt(self, modules[0])
        self.others = nn.ModuleList(modules[1:])
        self._asked = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The mean output of the N modules."""
        self._asked = True
        outputs = [super().forward(*args, **kwargs)]
        outputs += [module(*args, **kwargs) for module in self.others]
        return torch.stack(outputs).mean(dim=0)

    def on_test_end(self) -> None:
        """The module's own hook, and a check that the ensemble was asked.

        Raises:
            ConfigError: If no step called `self(...)`.
        """
        super().on_test_end()
        if not self._asked:
            raise ConfigError(
                "an ensemble cannot be tested by a test_step that does not call self(...): call "
                "self(x) there, not a part of the module"
            )
