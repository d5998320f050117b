"""The ways of making one module from aligned ingredients that a recipe can name."""

from lightning_merge.study.aggregates.aggregate import Aggregate
from lightning_merge.study.aggregates.average import Average
from lightning_merge.study.aggregates.ensembles import (
    FeaturesEnsemble,
    GreedyFeaturesEnsemble,
    GreedyLogitsEnsemble,
    LogitsEnsemble,
)
from lightning_merge.study.aggregates.greedy import GreedySoup
from lightning_merge.study.aggregates.learned import FineTune, NPMerge

__all__ = [
    "Aggregate",
    "Average",
    "FeaturesEnsemble",
    "FineTune",
    "GreedyFeaturesEnsemble",
    "GreedyLogitsEnsemble",
    "GreedySoup",
    "LogitsEnsemble",
    "NPMerge",
]
