"""The recalibrations that a recipe can name, one a file."""

from lightning_merge.recipe.recalibrations.renormalisation import Renormalisation
from lightning_merge.recipe.recalibrations.statistics_reset import (
    AugmentedReset,
    StatisticsReset,
)

__all__ = ["AugmentedReset", "Renormalisation", "StatisticsReset"]
