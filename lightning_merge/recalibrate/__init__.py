"""Repairing what averaging weights breaks: BatchNorm reset, REPAIR, least squares."""

from lightning_merge.recalibrate.batchnorm import reset_batchnorm
from lightning_merge.recalibrate.least_squares import LeastSquares
from lightning_merge.recalibrate.repair import Repair, repair

__all__ = ["LeastSquares", "Repair", "repair", "reset_batchnorm"]
