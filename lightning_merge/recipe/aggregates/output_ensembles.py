"""Ensembles: several networks at inference, of all ingredients or of the greedy soup's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lightning.pytorch import LightningModule

from lightning_merge.checkpoint import StateDict
from lightning_merge.loaders import example_inputs
from lightning_merge.modules import EnsembleModule, FeatureEnsembleModule
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.aggregates.greedy_members import GreedyMembers
from lightning_merge.recipe.context import Context

Head = Literal["merged", "first"]


class _Ensemble(Aggregate):
    """An ensemble of ingredients as they are.

    Attributes:
        head: Where features are combined, the last layer: `merged` or `first`.
    """

    is_ensemble: ClassVar[bool] = True
    head: Head = "merged"

    def members(self, states: Sequence[StateDict], context: Context) -> Sequence[StateDict]:
        """The state dicts of the networks that it consists of, aligned."""
        del context
        return states

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """An ensemble of all ingredients."""
        return Merged(self._module(states, context))

    def _module(self, members: Sequence[StateDict], context: Context) -> LightningModule:
        modules = [context.build(state).to(context.device) for state in members]
        if self.combines == "logits":
            return EnsembleModule(modules)
        example = example_inputs(context.statistics(), context.device)
        return FeatureEnsembleModule(modules, example, self.head)


class _OfGreedyMembers(GreedyMembers, _Ensemble):
    def members(self, states: Sequence[StateDict], context: Context) -> Sequence[StateDict]:
        """Those that the greedy search keeps, the best one first."""
        return self.search(states, context).value.members

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """An ensemble of those that the greedy search keeps."""
        found = self.search(states, context)
        return self._merged(self._module(found.value.members, context), found)


@aggregates.register(paper="Lakshminarayanan et al. 2017, Deep Ensembles")
class LogitsEnsemble(_Ensemble):
    """The mean of the ingredients' logits: N networks at inference."""

    label = "LogitsEnsemble"
    combines = "logits"


@aggregates.register(paper="Wang et al., Rethinking Weight-Averaged Model-merging, Sec. 6.3")
class FeaturesEnsemble(_Ensemble):
    """One last layer on the mean of the ingredients' features.

    Args:
        head: The last layer: the `merged` one (their mean), or that of the `first`
            ingredient (the paper's "Ens Features*").
    """

    label = "FeaturesEnsemble"
    combines = "features"

    def __init__(self, head: Head = "merged") -> None:
        self.head = head


@aggregates.register(
    paper="Wang et al., Rethinking Weight-Averaged Model-merging", needs="held-out labels"
)
class GreedyLogitsEnsemble(_OfGreedyMembers):
    """The mean of the logits of the greedy soup's ingredients."""

    label = "GreedyLogitsEnsemble"
    combines = "logits"


@aggregates.register(
    paper="Wang et al., Rethinking Weight-Averaged Model-merging", needs="held-out labels"
)
@dataclass(eq=False)
class GreedyFeaturesEnsemble(_OfGreedyMembers):
    """One last layer on the mean of the features of the greedy soup's ingredients.

    Args:
        head: As for `FeaturesEnsemble`; the `first` is the best ingredient.
    """

    label = "GreedyFeaturesEnsemble"
    combines = "features"

    head: Head = "merged"
