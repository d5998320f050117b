"""The recalibrations that a recipe can name, one a file."""

from lightning_merge.recipe.recalibrations.regression import Regression
from lightning_merge.recipe.recalibrations.renormalisation import (
    OutputRenormalisation,
    Renormalisation,
)
from lightning_merge.recipe.recalibrations.statistics_reset import AugmentedReset, StatisticsReset

__all__ = [
    "AugmentedReset",
    "OutputRenormalisation",
    "Regression",
    "Renormalisation",
    "StatisticsReset",
]
