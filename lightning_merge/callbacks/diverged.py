"""A training whose weights are no longer numbers: it will not recover, and says so."""

import warnings

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_merge.errors import NonFiniteError


class StopDiverged(Callback):
    """Ends a training, by a `NonFiniteError`, in whose last epoch a parameter became NaN."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the parameters."""
        lost = _lost(pl_module)
        if lost is not None:
            raise NonFiniteError(
                f"training diverged in epoch {trainer.current_epoch + 1}: '{lost}' holds NaN; "
                "lower the learning rate"
            )


def warn_if_diverged(module: nn.Module, what: str) -> None:
    """Warns where what was trained has a parameter with NaN."""
    lost = _lost(module)
    if lost is not None:
        warnings.warn(
            f"{what}: training diverged, '{lost}' holds NaN; lower the learning rate", stacklevel=2
        )


def _lost(module: nn.Module) -> str | None:
    """The name of a parameter with NaN."""
    named = module.named_parameters()
    return next((name for name, value in named if bool(value.isnan().any())), None)
