"""The sweeps that a comparison or study can have, one family a file."""

from lightning_merge.measure.sweeps.interpolation import InterpolationPath, InterpolationTriangle
from lightning_merge.measure.sweeps.weight_scaling import WeightScaling

__all__ = ["InterpolationPath", "InterpolationTriangle", "WeightScaling"]
