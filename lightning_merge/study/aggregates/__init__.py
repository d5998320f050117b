"""The ways of making one module from aligned ingredients that a recipe can name."""

from lightning_merge.study.aggregates.ada_merging import AdaMerging
from lightning_merge.study.aggregates.aggregate import Aggregate
from lightning_merge.study.aggregates.average import Average
from lightning_merge.study.aggregates.by_data import Fisher, RegMean
from lightning_merge.study.aggregates.ensembles import (
    FeaturesEnsemble,
    GreedyFeaturesEnsemble,
    GreedyLogitsEnsemble,
    LogitsEnsemble,
)
from lightning_merge.study.aggregates.greedy import GreedySoup
from lightning_merge.study.aggregates.learned import FineTune, NPMerge
from lightning_merge.study.aggregates.model_stock import ModelStock
from lightning_merge.study.aggregates.task_vectors import DARE, TIES, TaskArithmetic

__all__ = [
    "DARE",
    "TIES",
    "AdaMerging",
    "Aggregate",
    "Average",
    "FeaturesEnsemble",
    "FineTune",
    "Fisher",
    "GreedyFeaturesEnsemble",
    "GreedyLogitsEnsemble",
    "GreedySoup",
    "LogitsEnsemble",
    "ModelStock",
    "NPMerge",
    "RegMean",
    "TaskArithmetic",
]
