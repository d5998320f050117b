"""Thin Lightning adapters around aggregation and recalibration."""

from lightning_merge.callbacks.alphas import AlphaMonitor
from lightning_merge.callbacks.batchnorm_reset import BatchNormReset
from lightning_merge.callbacks.freeze import FreezeBatchNorm
from lightning_merge.callbacks.greedy import GreedySoup
from lightning_merge.callbacks.last_epochs import LastEpochsSoup
from lightning_merge.callbacks.progress import FitProgress

__all__ = [
    "AlphaMonitor",
    "BatchNormReset",
    "FitProgress",
    "FreezeBatchNorm",
    "GreedySoup",
    "LastEpochsSoup",
]
