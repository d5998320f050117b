"""Thin Lightning adapters around aggregation and recalibration."""

from lightning_merge.callbacks.alpha_monitor import AlphaMonitor
from lightning_merge.callbacks.batchnorm_reset import BatchNormReset
from lightning_merge.callbacks.fit_progress import FitProgress
from lightning_merge.callbacks.freeze_batchnorm import FreezeBatchNorm
from lightning_merge.callbacks.greedy_callback import GreedySoup
from lightning_merge.callbacks.in_model_merging import InModelMerging
from lightning_merge.callbacks.in_turn import Population
from lightning_merge.callbacks.last_epochs import LastEpochsSoup
from lightning_merge.callbacks.population_average import PopulationAverage

__all__ = [
    "AlphaMonitor",
    "BatchNormReset",
    "FitProgress",
    "FreezeBatchNorm",
    "GreedySoup",
    "InModelMerging",
    "LastEpochsSoup",
    "Population",
    "PopulationAverage",
]
