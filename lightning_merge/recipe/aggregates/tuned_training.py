"""Merges that are trained, at a learning rate (and schedule) chosen on held-out data."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, seed_everything

from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError, NonFiniteError
from lightning_merge.modules.merging.read_ingredients import check_automatic
from lightning_merge.progress import tracked
from lightning_merge.recipe.aggregate import Aggregate, Merged
from lightning_merge.recipe.choice import Choice
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.fitting import fit
from lightning_merge.recipe.recalibrated_start import moved_to_start
from lightning_merge.recipe.recalibration import Recalibration, recalibrate_with, recalibration_of

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class Candidate:
    """One way to train: a learning rate, that of the optimizer if None, and its schedule."""

    rate: float | None
    schedule: Schedule

    def __str__(self) -> str:
        rate = "its own" if self.rate is None else f"{self.rate:g}"
        return f"learning rate {rate}, {self.schedule} schedule"

    def configured(self, optimizer: torch.optim.Optimizer, module: LightningModule) -> Any:
        """What `configure_optimizers` returns; called once the Trainer knows the data."""
        if self.rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = self.rate
        if self.schedule == "constant":
            return optimizer
        steps = int(module.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class TunedTraining(Aggregate):
    """A module that is trained on the context's training data.

    With several learning rates or schedules it is trained with each combination, from the same
    start with the same batches; the one with the best score on held-out data, recalibrated as the
    result will be, is kept. What that takes is part of its seconds.

    Args:
        max_epochs: How many epochs over the training data, for each combination.
        learning_rates: The learning rates among which to choose; the optimizer's own if not given.
        schedules: The schedules among which to choose: `constant`, or `cosine` down to zero;
            constant if not given.
        start: How the mean that training starts from is recalibrated first, named as in a recipe's
            `recalibrate`; not at all if not given.

    Raises:
        ConfigError: If a learning rate is not positive, there is nothing to choose from, or
            no recalibration has the name `start`.
    """

    learns = True

    def __init__(
        self,
        max_epochs: int,
        learning_rates: list[float] | None = None,
        schedules: list[Schedule] | None = None,
        start: Recalibration | str | None = None,
    ) -> None:
        rates: Sequence[float | None] = [None] if learning_rates is None else learning_rates
        kinds: Sequence[Schedule] = ["constant"] if schedules is None else schedules
        known = [rate for rate in rates if rate is not None]
        if not all(math.isfinite(rate) and rate > 0 for rate in known):
            raise ConfigError(
                f"{type(self).__name__}: learning_rates are {learning_rates}: give positive numbers"
            )
        self.max_epochs, self.start = max_epochs, recalibration_of(start)
        self.candidates = list(
            dict.fromkeys(Candidate(rate, kind) for rate in rates for kind in kinds)
        )
        if not self.candidates:
            raise ConfigError(
                f"{type(self).__name__}: learning_rates or schedules are empty; give some or none"
            )

    @abstractmethod
    def untrained(self, states: Sequence[StateDict], context: Context) -> LightningModule:
        """The module, before it has learned anything."""

    @abstractmethod
    def initial_shares(self, count: int) -> Sequence[float] | None:
        """The shares of so many ingredients in what `untrained` makes; None for equal ones."""

    @abstractmethod
    def optimizer_of(self, module: Any) -> torch.optim.Optimizer:
        """The optimizer of what is trained in a module that `untrained` made."""

    def check(self, context: Context) -> None:
        """Checks that Lightning optimizes, and that there are data to choose on if need be."""
        check_automatic(context.module)
        if len(self.candidates) > 1:
            context.held_out()

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """The trained module."""
        if self.start is None:
            return self._best(states, context)
        shares = self.initial_shares(len(states))
        moved = moved_to_start(states, shares, self.start, context)
        # Whether or not an earlier recipe found the start, the batches are the same.
        seed_everything(context.seed, verbose=False)
        made = self._best(moved.value, context)
        return replace(made, seconds=made.seconds + moved.saved)

    def _best(self, states: Sequence[StateDict], context: Context) -> Merged:
        if len(self.candidates) == 1:
            return self._trained(self.candidates[0], states, context)
        held_out, recalibrate = context.held_out(), recalibrate_with(context, states)
        scores: dict[Candidate, float] = {}
        best: Merged | None = None
        top = -math.inf
        for candidate in tracked(self.candidates, "Learning rate", context.progress):
            # The same batches for all, so that nothing else decides.
            seed_everything(context.seed, verbose=False)
            made = self._trained(candidate, states, context)
            try:
                recalibrate(made.module, None)
                scores[candidate] = held_out.score(made.module)
            except NonFiniteError:
                # One that diverged has no statistics; the others may be fine.
                scores[candidate] = math.nan
            worth = -math.inf if math.isnan(scores[candidate]) else scores[candidate]
            if best is None or worth > top:
                best, chosen, top = made, candidate, worth
        assert best is not None
        examples = held_out.size
        choice = Choice(
            f"{chosen}, chosen by accuracy on {examples:,} validation examples "
            f"among {len(scores)} candidates",
            {
                "learning_rate": chosen.rate,
                "schedule": chosen.schedule,
                "scores": {str(one): score for one, score in scores.items()},
                "score": "accuracy",
                "examples": examples,
            },
        )
        return Merged(best.module, (choice,), best.labelled_examples + examples)

    def _trained(
        self, candidate: Candidate, states: Sequence[StateDict], context: Context
    ) -> Merged:
        module = self.untrained(states, context)
        configure = partial(self._configured, module, candidate)
        setattr(module, "configure_optimizers", configure)  # noqa: B010
        made = fit_quietly(module, self.max_epochs, context)
        del module.__dict__["configure_optimizers"]
        return made

    def _configured(self, module: LightningModule, candidate: Candidate) -> Any:
        return candidate.configured(self.optimizer_of(module), module)


def fit_quietly(module: LightningModule, max_epochs: int, context: Context) -> Merged:
    """A module fitted on the context's training data, which count as labelled examples."""
    examples = fit(module, context.data, context.trainer(max_epochs=max_epochs))
    return Merged(module.eval(), labelled_examples=examples)
