"""REPAIR as a recipe's recalibration."""

from collections.abc import Sequence
from functools import cache

from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.recalibrate import Repair
from lightning_merge.recalibrate.channels import Which
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.recalibration import Recalibrate, Recalibration, recalibrations


@recalibrations.register(
    "repair", paper="Jordan et al. 2023, REPAIR", needs="a weighted mean, layers with biases"
)
class Renormalisation(Recalibration):
    """Gives the units the means and deviations that they have in the ingredients (REPAIR)."""

    label = "REPAIR"
    of_means = True
    which: Which = "hidden"

    def check(self, module: nn.Module, recipe: str) -> None:
        """Checks that there is no BatchNorm, which would undo the correction."""
        if any(isinstance(layer, _BatchNorm) for layer in module.modules()):
            raise ConfigError(
                f"recipe '{recipe}': `recalibrate: repair` is for networks without BatchNorm, and "
                "this one has some: write `recalibrate: batchnorm`"
            )

    def prepare(self, states: Sequence[StateDict], context: Context) -> Recalibrate:
        """A function that repairs merges; the ingredients are measured when it is first called."""
        measured = cache(lambda: _measured(states, context, self.which))

        def repair(module: LightningModule, weights: Sequence[float] | None = None) -> None:
            measured()(module.to(context.device), weights, context.progress)

        return repair


@recalibrations.register(
    "outputs", paper="Jordan et al. 2023, REPAIR, of the last layer alone", needs="a weighted mean"
)
class OutputRenormalisation(Renormalisation):
    """Gives the outputs the means and deviations that they have in the ingredients.

    Averaging moves thresholds and flattens logits, in networks without BatchNorm above all. No
    labels are read, and the last layer alone is changed.
    """

    label = "outputs"
    which = "output"

    def check(self, module: nn.Module, recipe: str) -> None:
        """Nothing undoes a correction of the last layer."""


def _measured(states: Sequence[StateDict], context: Context, which: Which) -> Repair:
    parents = (context.build(state).to(context.device) for state in states)
    repair = Repair(parents, context.statistics(), context.progress, context.seed, which)
    if not repair.layers:
        raise ConfigError(
            f"recipe '{context.recipe}': {type(context.module).__name__} has no hidden layer that "
            "REPAIR can correct, such as those that compute with their weights standardised or "
            "normalised: leave `recalibrate` out"
        )
    lacking = repair.without_bias
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ConfigError(
            f"recipe '{context.recipe}': REPAIR shifts units by their layer's bias, and "
            f"'{lacking[0]}'{more} has none, so the merge would not load into "
            f"{type(context.module).__name__}: give these layers a bias, or leave `recalibrate` out"
        )
    return repair
