"""Aggregation of aligned weights: functions over state dicts and flat buffers."""

from lightning_merge.aggregate.average import average, interpolate

__all__ = ["average", "interpolate"]
