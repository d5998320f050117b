"""Model Stock: how far to go from the pre-trained weights, told by the angle between networks.

Jang et al. 2024, "Model Stock: All we need is just a few fine-tuned models".
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.averaging import average
from lightning_merge.aggregate.vector_arithmetic import is_running_statistic
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError


def model_stock(
    pretrained: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]]
) -> StateDict:
    """`t * mean(states) + (1 - t) * pretrained`, with a ratio `t` for each tensor.

    `t = N c / (1 + (N - 1) c)`, where `c` is the mean over all pairs of the cosine between
    two networks' steps away from the pre-trained tensor: fine-tuned weights lie on a shell
    around a centre, and this is the point nearest to it in their plane. A negative `c` is taken
    as 0, which gives the pre-trained tensor. A tensor that no network moved stays.

    Integers and booleans are the pre-trained network's. Running statistics have no angle of
    their own: they are interpolated with the mean of `t` over the parameters that moved.

    Args:
        pretrained: The state dict that all started from.
        states: N >= 2 fine-tuned state dicts with the same names and shapes.

    Returns:
        A new state dict, computed in float64, in the pre-trained network's types.

    Raises:
        ConfigError: If there are fewer than two fine-tuned networks.
    """
    if len(states) < 2:
        raise ConfigError(
            f"Model Stock: an angle needs two fine-tuned networks, not {len(states)}; give more"
        )
    merged: StateDict = {}
    weighted, size = 0.0, 0
    for name, start in pretrained.items():
        if not start.is_floating_point():
            merged[name] = start.clone()
        elif not is_running_statistic(name):
            ratio, mean_step = _ratio_and_step(start, [state[name] for state in states])
            merged[name] = start.to(torch.float64).add(mean_step, alpha=ratio).to(start.dtype)
            if bool(mean_step.any()):
                weighted += ratio * start.numel()
                size += start.numel()
    overall = weighted / size if size else 1.0
    statistics = [name for name in pretrained if name not in merged]
    means = average([{name: state[name] for name in statistics} for state in states])
    for name in statistics:
        start = pretrained[name].to(torch.float64)
        merged[name] = start.lerp(means[name].to(start), overall).to(pretrained[name].dtype)
    return {name: merged[name] for name in pretrained}


def _ratio_and_step(start: Tensor, ends: Sequence[Tensor]) -> tuple[float, Tensor]:
    origin = start.to(torch.float64)
    step_sum = torch.zeros_like(origin)
    unit_sum = torch.zeros_like(origin)
    moved = 0
    for end in ends:
        step = end.to(start.device, torch.float64) - origin
        step_sum += step
        length = float(step.norm())
        if length > 0:
            unit_sum.add_(step, alpha=1 / length)
            moved += 1
    n = len(ends)
    # The square of a sum of unit vectors holds every pair's cosine twice.
    cosine = (float(unit_sum.square().sum()) - moved) / (n * (n - 1))
    cosine = min(max(cosine, 0.0), 1.0)
    return n * cosine / (1 + (n - 1) * cosine), step_sum / n
