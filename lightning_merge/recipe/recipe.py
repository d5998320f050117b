"""A Recipe: how to align, aggregate and recalibrate, under a name."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning.pytorch import LightningModule, seed_everything

from lightning_merge.align import Matching
from lightning_merge.callbacks.diverged import warn_if_diverged
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError, NonFiniteError
from lightning_merge.recipe.aggregate import Aggregate, Merged
from lightning_merge.recipe.aligning import align
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.kept import Alignment
from lightning_merge.recipe.recalibration import Recalibration, recalibrate_with, recalibration_of
from lightning_merge.recipe.selection import Selection, merge_selected


@dataclass(frozen=True)
class Recipe:
    """The choices that make one network (or an ensemble) from several.

    Attributes:
        name: What to call the result in tables and figures.
        aggregate: How aligned ingredients are combined, for example `Average` or `NPMerge`.
        align: How the others are aligned to the first one, for example
            `ActivationMatching`; None leaves them as they are.
        recalibrate: `batchnorm` resets BatchNorm statistics on the training images
            (`batchnorm-augmented`: as they are augmented for training); `repair`
            (REPAIR, for a weighted mean of networks without BatchNorm) gives the units the
            means and deviations that they have in the ingredients, `outputs` the last layer
            alone; `least-squares` fits every layer to what the ingredients' own give on average;
            None leaves what aggregation gave. Or a `Recalibration` of your own.
        select: Which ingredients are aggregated, for example `DPP`; None takes all of them.

    Raises:
        ConfigError: If no recalibration has that name.
    """

    name: str
    aggregate: Aggregate
    align: Matching | None = None
    recalibrate: Recalibration | str | None = None
    select: Selection | None = None

    def __post_init__(self) -> None:
        recalibration_of(self.recalibrate)

    @property
    def recalibration(self) -> Recalibration | None:
        """The recalibration that `recalibrate` names."""
        return recalibration_of(self.recalibrate)

    def check(self, module: LightningModule) -> None:
        """Checks that the recipe suits a network, whose weights do not matter, and itself.

        Raises:
            ConfigError: If the recalibration does not go with the network, or alignment,
                recalibration or selection with how the recipe aggregates.
        """
        recalibration, kind = self.recalibration, type(self.aggregate).__name__
        of_means = recalibration is not None and recalibration.of_means
        if of_means and self.aggregate.weights_of_mean(2) is None:
            raise ConfigError(
                f"recipe '{self.name}': `recalibrate: {self.recalibrate}` aims at the "
                f"ingredients' statistics, weighted as their mean is, and {kind} has no such "
                "weights: use `aggregate: Average` with one weight for each ingredient or with "
                "none, or leave `recalibrate` out"
            )
        for option, one in ("recalibrate", recalibration), ("start", self.aggregate.start):
            if one is None:
                continue
            try:
                one.check(module, self.name)
            except ConfigError as error:
                # A recalibration speaks of the option that usually names it.
                text = str(error).replace("`recalibrate:", f"`{option}:")
                raise ConfigError(text) from None
            if one.of_functions and self.align and not self.align.keeps_function:
                raise ConfigError(
                    f"recipe '{self.name}': {one.label} aims at what the aligned ingredients "
                    f"compute, and {type(self.align).__name__} changes that: align by "
                    f"permutations, ActivationMatching for one, or leave `{option}` out"
                )
        if self.aggregate.from_pretrained and self.align is not None:
            raise ConfigError(
                f"recipe '{self.name}': {kind} goes from the pre-trained network, whose units "
                "aligned ingredients no longer follow: leave `align` out"
            )
        if self.select is not None and not self.aggregate.fits_any_count:
            raise ConfigError(
                f"recipe '{self.name}': `weights` are one for each ingredient, and `select` leaves "
                "some out: give one of the two"
            )

    def check_context(self, context: Context) -> None:
        """Checks that the recipe suits a context's network and data.

        Raises:
            ConfigError: If not.
        """
        self.check(context.module)
        context.check_matching(self.align)
        self.aggregate.check(context)
        if self.select is None:
            self.aggregate.check_count(len(context.states))
        else:
            self.select.check(context)

    def __call__(self, context: Context) -> Merged:
        """Makes the module.

        Returns:
            The module, with what was chosen, and the seconds that all steps took (an alignment
            or greedy search counts whole where an earlier recipe on these ingredients did it).

        Raises:
            ConfigError: If the recipe does not suit the network or the data.
        """
        self.check_context(context)
        context = context.recalibrated_by(self.recalibration, self.name)
        alignment = self.aligned(context)
        seed_everything(context.seed, verbose=False)
        start = time.perf_counter()
        if self.select is None:
            made = self._merge(alignment.states, context)
        else:
            made = merge_selected(self.select, self._merge, alignment.states, context)
        if self.aggregate.learns:
            warn_if_diverged(made.module, f"recipe '{self.name}'")
        seconds = alignment.seconds + time.perf_counter() - start + made.seconds
        looked = max((choice.details["examples"] for choice in alignment.choices), default=0)
        return replace(
            made,
            choices=(*alignment.choices, *made.choices),
            labelled_examples=made.labelled_with(looked),
            seconds=seconds,
        )

    def aligned(self, context: Context) -> Alignment:
        """A context's ingredients as they are aggregated."""
        found = align(self.align, context)
        if self.aggregate.combines == "logits":
            # Members of an ensemble of logits answer for their own classes.
            return found
        return replace(found, states=context.under_all_heads(found.states))

    def _merge(self, states: Sequence[StateDict], context: Context) -> Merged:
        made: object = self.aggregate(states, context)
        if not isinstance(made, Merged):
            raise ConfigError(
                f"recipe '{self.name}': {type(self.aggregate).__name__} gave a "
                f"{type(made).__name__}, not a Merged: return Merged(module)"
            )
        weights = self.aggregate.weights_of_mean(len(states))
        try:
            recalibrate_with(context, states)(made.module, weights)
        except NonFiniteError:
            if self.aggregate.learns:
                warn_if_diverged(made.module, f"recipe '{self.name}'")
            raise
        return made
