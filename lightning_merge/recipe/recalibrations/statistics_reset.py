"""BatchNorm reset as a recipe's recalibration."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule
from torch import nn

from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.recalibration import (
    Recalibrate,
    Recalibration,
    keeps_statistics,
    recalibrations,
)


@recalibrations.register("batchnorm", paper="Jordan et al. 2023, REPAIR", needs="BatchNorm")
class StatisticsReset(Recalibration):
    """Resets BatchNorm statistics to those of the merged network on the training images.

    Args:
        augmented: Whether the images are read as they are augmented for training, and not, where
            the data module offers that, without augmentation.
    """

    label = "reset"

    def __init__(self, augmented: bool = False) -> None:
        self.augmented = augmented

    def check(self, module: nn.Module, recipe: str) -> None:
        """Checks that the network has statistics."""
        if not keeps_statistics(module):
            raise ConfigError(
                f"recipe '{recipe}': `recalibrate: batchnorm` has nothing to reset, this network "
                "has no BatchNorm statistics: write `recalibrate: repair`, or leave it out"
            )

    def prepare(self, states: Sequence[StateDict], context: Context) -> Recalibrate:
        """A function that resets a merge; the ingredients do not matter."""
        del states

        def reset(module: LightningModule, weights: Sequence[float] | None = None) -> None:
            del weights
            context.reset_batchnorm(module, augmented=self.augmented)

        return reset


@recalibrations.register(
    "batchnorm-augmented", paper="Jordan et al. 2023, REPAIR", needs="BatchNorm"
)
class AugmentedReset(StatisticsReset):
    """Resets BatchNorm statistics on the training images as training augments them."""

    label = "augmented reset"

    def __init__(self) -> None:
        super().__init__(augmented=True)
