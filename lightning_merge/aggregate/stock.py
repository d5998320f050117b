"""Model Stock: how far to go from the pre-trained weights, told by the angle between networks.

Jang et al. 2024, "Model Stock: All we need is just a few fine-tuned models".
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.averaging import mean_of
from lightning_merge.aggregate.inputs import State, checked, checked_tensors, opened_all, wide
from lightning_merge.errors import ConfigError
from lightning_merge.number_types import is_fraction
from lightning_merge.state_dicts import StateDict, check_alike
from lightning_merge.tensor_names import is_running_statistic
from lightning_merge.tensor_table import Entry


def model_stock(pretrained: State, states: Sequence[State]) -> StateDict:
    """`t * mean(states) + (1 - t) * pretrained`, with a ratio `t` for each tensor.

    `t = N c / (1 + (N - 1) c)`, where `c` is the mean over all pairs of the cosine between
    two networks' steps away from the pre-trained tensor: fine-tuned weights lie on a shell
    around a centre, and this is the point nearest to it in their plane. A negative `c` is taken
    as 0, which gives the pre-trained tensor. A tensor that no network moved stays.

    Integers and booleans are the pre-trained network's. Running statistics have no angle of
    their own: they are interpolated with the mean of `t` over the parameters that moved.

    Args:
        pretrained: The state dict that all started from, or the path of its file.
        states: N >= 2 fine-tuned state dicts with the same names and shapes, or paths. One
            tensor at a time is taken from each.

    Returns:
        A new state dict, computed in float64, in the pre-trained network's types.

    Raises:
        ConfigError: If there are fewer than two fine-tuned networks.
        MergeError: If names, shapes or kinds of numbers differ, a tensor is no free parameter,
            or holds NaN.
    """
    if len(states) < 2:
        raise ConfigError(
            f"Model Stock: an angle needs two fine-tuned networks, not {len(states)}; give more"
        )
    called = ["the pre-trained network", *(f"fine-tuned network {k}" for k in range(len(states)))]
    (origin, *tuned), names = opened_all([pretrained, *states], called)
    table = check_alike([origin, *tuned], names)
    merged: StateDict = {}
    weighted, size = 0.0, 0
    for name in origin:
        if not is_fraction(table[name].code):
            merged[name] = origin[name].detach().clone()
        elif not is_running_statistic(name):
            start, *ends = checked_tensors([origin, *tuned], names, name)
            ratio, mean_step = _ratio_and_step(start, ends)
            end = start.to(wide(start)).add(mean_step, alpha=ratio)
            merged[name] = checked(name, end.to(start.dtype), start)
            if any(bool((end != start).any()) for end in ends):
                weighted += ratio * start.numel()
                size += start.numel()
    overall = weighted / size if size else 1.0
    for name in origin:
        if name in merged:
            continue
        start, *ends = checked_tensors([origin, *tuned], names, name)
        wide_entry = Entry("F64", table[name].shape)
        mean = mean_of(name, ends, [1.0] * len(ends), names[1:], wide_entry)
        both = start.to(torch.float64).lerp(mean.to(start.device, torch.float64), overall)
        merged[name] = checked(name, both.to(start.dtype))
    return {name: merged[name] for name in origin}


def _ratio_and_step(start: Tensor, ends: Sequence[Tensor]) -> tuple[float, Tensor]:
    origin = start.to(wide(start))
    step_sum = torch.zeros_like(origin)
    unit_sum = torch.zeros_like(origin)
    moved = 0
    for end in ends:
        step = end.to(origin) - origin
        # A mask's infinities do not move.
        step = torch.where(end == start, torch.zeros_like(step), step)
        step_sum += step
        length = float(step.norm())
        if length > 0:
            unit_sum.add_(step, alpha=1 / length)
            moved += 1
    n = len(ends)
    # The square of a sum of unit vectors holds every pair's cosine twice.
    cosine = (float(unit_sum.abs().square().sum()) - moved) / (n * (n - 1))
    cosine = min(max(cosine, 0.0), 1.0)
    return n * cosine / (1 + (n - 1) * cosine), step_sum / n
