"""Least squares as a recipe's recalibration."""

from collections.abc import Sequence
from functools import cache

from lightning.pytorch import LightningModule

from lightning_merge.checkpoint import StateDict
from lightning_merge.recalibrate import LeastSquares
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.recalibration import Recalibrate, Recalibration, recalibrations


@recalibrations.register(
    "least-squares",
    paper="Nasery et al. 2025, PLeaS; Nguyen et al. 2025, RegMean++",
    needs="a weighted mean",
)
class Regression(Recalibration):
    """Fits every layer, in turn, to what it gives in the ingredients on average.

    No labels are read; weights and biases of layers change, and BatchNorm's with them.
    """

    label = "least squares"
    of_means = True
    of_functions = True

    def prepare(self, states: Sequence[StateDict], context: Context) -> Recalibrate:
        """A function that fits merges."""

        @cache
        def prepared() -> LeastSquares:
            parents = [context.build(state).to(context.device) for state in states]
            return LeastSquares(parents, context.statistics(), context.progress, context.seed)

        def fit(module: LightningModule, weights: Sequence[float] | None = None) -> None:
            prepared()(module.to(context.device), weights, context.progress)

        return fit
