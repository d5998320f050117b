"""Merges that learn from training data: NP Merge, fine-tuning of the average."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable

from lightning_merge.aggregate import average
from lightning_merge.aggregate.name_weights import NameWeights
from lightning_merge.checkpoint import StateDict
from lightning_merge.modules import Granularity, MergeModule
from lightning_merge.recipe.aggregate import aggregates
from lightning_merge.recipe.aggregates.tuned_training import Schedule, TunedTraining
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.recalibration import Recalibration


@aggregates.register(paper="NP Merge, Sec. III-D", needs="labelled training data")
class FineTune(TunedTraining):
    """The average, with all of its weights trained further (NP Merge, Sec. III-D).

    Args:
        max_epochs: How many epochs over the training data.
        optimizer: Called with the parameters.
        learning_rates: Learning rates of which one is chosen on held-out data, each after a
            training of its own; that of the optimizer if not given.
        schedules: The same for the schedule, `constant` or `cosine`; constant if not given.
        weights: One number for each ingredient, as for `Average`; `[1, 0]` trains the first of two
            further. Equal if not given.
        start: How the average is recalibrated before it is trained, named as in a recipe's
            `recalibrate`: `least-squares` where labels are few. Not at all if not given.
    """

    def __init__(
        self,
        max_epochs: int = 10,
        optimizer: OptimizerCallable = torch.optim.Adam,
        learning_rates: list[float] | None = None,
        schedules: list[Schedule] | None = None,
        weights: list[float] | None = None,
        start: Recalibration | str | None = None,
    ) -> None:
        super().__init__(max_epochs, learning_rates, schedules, start)
        self.optimizer, self.weights = optimizer, weights

    def check_count(self, count: int) -> None:
        """Checks that there is a weight for each ingredient."""
        NameWeights(self.weights, count, "FineTune").check_means()

    @property
    def fits_any_count(self) -> bool:
        """Whether no weights were given."""
        return self.weights is None

    def untrained(self, states: Sequence[StateDict], context: Context) -> LightningModule:
        """The average."""
        return context.build(average(states, self.weights))

    def initial_shares(self, count: int) -> Sequence[float] | None:
        """The weights that were given."""
        del count
        return self.weights

    def optimizer_of(self, module: Any) -> torch.optim.Optimizer:
        """The optimizer of all weights."""
        return self.optimizer(module.parameters())


@aggregates.register(paper="Orozco Camacho et al. 2024, NP Merge", needs="labelled training data")
class NPMerge(TunedTraining):
    """One learned alpha for each parameter (NP Merge, Eq. 2), or for each layer or model.

    More than two ingredients are merged jointly: each has an alpha, and a softmax over them is
    in the sigmoid's place; `NPMergePairs` merges them two at a time, as the paper does. With one
    alpha for the model or a layer this has the parameters of a learned soup, learned from
    training data; its authors' own way, on held-out data, is `LearnedSoup`.

    Args:
        granularity: One alpha for the `model`, one a `layer`, `channel` or `parameter`.
        max_epochs: How many epochs over the training data.
        alpha: The initial share of the first ingredient; all have the same if not given.
        optimizer: Called with the alphas' logits.
        learning_rates: As for `FineTune`.
        schedules: As for `FineTune`.
        start: As for `FineTune`. All ingredients move by what recalibrating adds to their mean, so
            the alphas start from the recalibrated mean and have the same directions as without.
    """

    def __init__(
        self,
        granularity: Granularity = "parameter",
        max_epochs: int = 10,
        alpha: float | None = None,
        optimizer: OptimizerCallable = lambda logits: torch.optim.Adam(logits, lr=0.01),
        learning_rates: list[float] | None = None,
        schedules: list[Schedule] | None = None,
        start: Recalibration | str | None = None,
    ) -> None:
        super().__init__(max_epochs, learning_rates, schedules, start)
        self.granularity = granularity
        self.alpha = alpha
        self.optimizer = optimizer

    def untrained(self, states: Sequence[StateDict], context: Context) -> MergeModule:
        """The merge at its initial alphas; its `alphas()` are learned."""
        return MergeModule(
            context.build(states[0]),
            states,
            granularity=self.granularity,
            alpha=self.alpha,
            optimizer=self.optimizer,
        )

    def initial_shares(self, count: int) -> Sequence[float] | None:
        """The share `alpha` of the first one; the others share the rest."""
        if self.alpha is None:
            return None
        return [self.alpha] + [(1 - self.alpha) / (count - 1)] * (count - 1)

    def optimizer_of(self, module: Any) -> torch.optim.Optimizer:
        """The optimizer of the alphas' logits."""
        return self.optimizer([module.alpha_logits])
