"""Repairing the activation statistics that averaging weights breaks: BatchNorm reset, REPAIR."""

from lightning_merge.recalibrate.batchnorm import reset_batchnorm
from lightning_merge.recalibrate.repair import Repair, repair

__all__ = ["Repair", "repair", "reset_batchnorm"]
