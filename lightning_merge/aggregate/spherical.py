"""Means on spheres: SLERP of two networks, and the Karcher (Riemannian) mean of N, by tensor.

Shoemake 1985, "Animating Rotation with Quaternion Curves"; Karcher 1977, "Riemannian center of mass
and mollifier smoothing". A straight line between two directions cuts a corner, and its middle is
shorter than its ends; the great circle keeps the length.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.averaging import mean_of
from lightning_merge.aggregate.inputs import State, checked, checked_tensors, opened_all, wide
from lightning_merge.errors import ConfigError
from lightning_merge.number_types import is_fraction
from lightning_merge.state_dicts import StateDict, check_alike, is_finite, torch_type
from lightning_merge.tensor_names import is_running_statistic

_SMALL_ANGLE = 1e-6
_STEPS, _CLOSE = 100, 1e-12

SphereMean = Callable[[Sequence[Tensor]], Tensor | None]


def slerp(a: State, b: State, t: float) -> StateDict:
    """Spherical interpolation, tensor by tensor: `sin((1-t)w)/sin(w) A + sin(tw)/sin(w) B`.

    `w` is the angle between two tensors, taken as vectors. Where it has no sine (tensors that are
    parallel, opposite, or zero), and for running statistics and single numbers, which are no
    directions, it is the line `(1 - t) A + t B`. Integers are those of `a`.

    Args:
        a: A state dict, or the path of a file of weights.
        b: Another with the same names and shapes, aligned to `a`.
        t: The share of `b`, in [0, 1]: 0 gives `a`, 1 gives `b`.

    Returns:
        A new state dict, computed in float64, in the widest type that an ingredient has.

    Raises:
        ConfigError: If `t` is out of range.
        MergeError: As for `average`.

    Example:
        >>> import torch
        >>> a, b = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
        >>> slerp(a, b, 0.5)
        {'w': tensor([0.7071, 0.7071])}
    """
    t = float(t)
    if not 0 <= t <= 1:
        raise ConfigError(f"SLERP: t {t} is no share; choose one in [0, 1]")
    return _by_tensor([a, b], [1 - t, t], lambda pair: _slerp(pair[0], pair[1], t))


def karcher_mean(states: Sequence[State], weights: Sequence[float] | None = None) -> StateDict:
    """The Karcher mean of N networks, tensor by tensor.

    Each tensor, as a vector, is a direction and a length. The mean direction is the point of the
    sphere with the least (weighted) sum of squared angles to all of them, found by following the
    mean of their tangents; the length is the mean of theirs. Where directions cancel so that there
    is no such point, and for running statistics and single numbers, it is the plain mean. Integers
    are those of the first state.

    Args:
        states: N state dicts with the same names and shapes, or paths of files of weights.
        weights: N numbers from 0 on, divided by their sum; equal if not given.

    Returns:
        A new state dict, computed in float64, in the widest type that an ingredient has. Of two
        tensors of one length it is `slerp`. The order of the states changes nothing but roundings.

    Raises:
        ConfigError: If there is no state, or the weights do not fit.
        MergeError: As for `average`.

    Example:
        >>> import torch
        >>> states = [{"w": torch.tensor(one)} for one in ([2.0, 0.0], [0.0, 4.0])]
        >>> karcher_mean(states)
        {'w': tensor([2.1213, 2.1213])}
    """
    shares = [1.0] * len(states) if weights is None else [float(one) for one in weights]
    if not shares:
        raise ConfigError("Karcher mean: no state dict was given; give at least one")
    usable = all(map(math.isfinite, shares)) and min(shares) >= 0 and sum(shares) > 0
    if len(shares) != len(states) or not usable:
        raise ConfigError(
            f"Karcher mean: weights {shares} for {len(states)} networks; give one for each, from 0 "
            "on, not all 0"
        )
    shares = [one / math.fsum(shares) for one in shares]
    return _by_tensor(states, shares, lambda values: _karcher(values, shares))


def _by_tensor(states: Sequence[State], shares: Sequence[float], mean: SphereMean) -> StateDict:
    found, names = opened_all(states)
    merged: StateDict = {}
    for key, entry in check_alike(found, names).items():
        if not is_fraction(entry.code):
            # A batch counter may be absent in some.
            owner = next(state for state in found if key in state)
            merged[key] = owner[key].detach().clone()
            continue
        values = checked_tensors(found, names, key)
        one = None
        # An infinity belongs to a mask, which all share: it has no direction.
        if not is_running_statistic(key) and values[0].numel() > 1 and all(map(is_finite, values)):
            one = mean([value.to(values[0].device, wide(value)) for value in values])
        if one is None:
            merged[key] = mean_of(key, values, shares, names, entry)
        else:
            merged[key] = checked(key, one.to(torch_type(entry.code)))
    return merged


def _slerp(a: Tensor, b: Tensor, t: float) -> Tensor | None:
    lengths = float(a.norm()), float(b.norm())
    if not min(lengths):
        return None
    angle = _angle(a / lengths[0], b / lengths[1])
    if math.sin(angle) < _SMALL_ANGLE:
        return None
    first, second = math.sin((1 - t) * angle), math.sin(t * angle)
    return (first * a + second * b) / math.sin(angle)


def _karcher(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor | None:
    lengths = [float(value.norm()) for value in values]
    units = [
        (share, value / length)
        for share, value, length in zip(shares, values, lengths, strict=True)
        if length
    ]
    point = sum((share * unit for share, unit in units), torch.zeros_like(values[0]))
    if float(point.norm()) < _SMALL_ANGLE:
        return None
    point = point / point.norm()
    for _ in range(_STEPS):
        tangent = torch.zeros_like(point)
        for share, unit in units:
            angle = _angle(point, unit)
            across = unit - math.cos(angle) * point
            length = float(across.norm())
            if length > 0:
                tangent.add_(across, alpha=share * angle / length)
        step = float(tangent.norm())
        if step < _CLOSE:
            break
        point = math.cos(step) * point + math.sin(step) / step * tangent
        point = point / point.norm()
    return point * math.fsum(s * length for s, length in zip(shares, lengths, strict=True))


def _angle(a: Tensor, b: Tensor) -> float:
    """Between unit vectors; unlike the arc cosine precise where it is small."""
    return 2 * math.atan2(float((a - b).norm()), float((a + b).norm()))
