"""Ensembles: several networks at inference, of all ingredients or of the greedy soup's."""

from collections.abc import Sequence
from typing import Literal

from lightning.pytorch import LightningModule

from lightning_merge.checkpoint import StateDict
from lightning_merge.loaders import example_inputs
from lightning_merge.modules import EnsembleModule, FeatureEnsembleModule
from lightning_merge.study.aggregates.aggregate import Aggregate
from lightning_merge.study.aggregates.greedy import Greedy
from lightning_merge.study.pool import Pool

Head = Literal["merged", "first"]


class LogitsEnsemble(Aggregate):
    """The mean of the ingredients' logits: N networks at inference."""

    merges = False

    def __call__(self, states: Sequence[StateDict], pool: Pool) -> LightningModule:
        """An ensemble of all ingredients."""
        return _of_logits(states, pool)


class FeaturesEnsemble(Aggregate):
    """One last layer on the mean of the ingredients' features (Rethinking, Sec. 6.3).

    Args:
        head: The last layer: the `merged` one (their mean), or that of the `first`
            ingredient (the paper's "Ens Features*").
    """

    merges = False

    def __init__(self, head: Head = "merged") -> None:
        self.head = head

    def __call__(self, states: Sequence[StateDict], pool: Pool) -> LightningModule:
        """An ensemble of all ingredients.

        Raises:
            ConfigError: If the network's output is not that of one last linear layer.
        """
        return _of_features(states, pool, self.head)


class GreedyLogitsEnsemble(Greedy):
    """The mean of the logits of the greedy soup's ingredients.

    Args:
        metric: As for `GreedySoup`.
        mode: As for `GreedySoup`.
    """

    merges = False

    def __call__(self, states: Sequence[StateDict], pool: Pool) -> LightningModule:
        """An ensemble of those that the greedy search kept, the best one first."""
        return _of_logits(self.search(states, pool).members, pool)


class GreedyFeaturesEnsemble(Greedy):
    """One last layer on the mean of the features of the greedy soup's ingredients.

    Args:
        metric: As for `GreedySoup`.
        mode: As for `GreedySoup`.
        head: As for `FeaturesEnsemble`; the `first` is the best ingredient.
    """

    merges = False

    def __init__(
        self,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
        head: Head = "merged",
    ) -> None:
        super().__init__(metric, mode)
        self.head = head

    def __call__(self, states: Sequence[StateDict], pool: Pool) -> LightningModule:
        """An ensemble of those that the greedy search kept, the best one first."""
        return _of_features(self.search(states, pool).members, pool, self.head)


def _of_logits(states: Sequence[StateDict], pool: Pool) -> LightningModule:
    return EnsembleModule([pool.build(state) for state in states])


def _of_features(states: Sequence[StateDict], pool: Pool, head: Head) -> LightningModule:
    modules = [pool.build(state).to(pool.device) for state in states]
    example = example_inputs(pool.statistics(), pool.device)
    return FeatureEnsembleModule(modules, example, head)
