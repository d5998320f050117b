"""Folding linear maps of units into the layers and BatchNorms around them."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.align.matching.cca_map import LinearMap
from lightning_merge.linear_layers import uses_its_weight
from lightning_merge.symmetry.unit_group import Group, Member
from lightning_merge.watched_layers import watch_input, watch_output

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# A norm's ratio below this share of the layer's median is not divided by.
_SWITCHED_OFF = 1e-2


@contextmanager
def norms_behind_layers(model: nn.Module) -> Iterator[dict[str, str]]:
    """A dict that fills, as the model runs, with the BatchNorm right behind each layer."""
    found: dict[str, str] = {}
    last: list[tuple[str, Tensor]] = []

    def made(name: str, output: Tensor) -> None:
        last[:] = [(name, output)]

    def normed(name: str, given: Tensor) -> None:
        if last and given is last[0][1]:
            found[last[0][0]] = name

    with ExitStack() as watches:
        for name, module in model.named_modules():
            if isinstance(module, _LAYERS):
                watches.enter_context(watch_output(module, partial(made, name)))
            elif isinstance(module, _BatchNorm) and module.track_running_stats:
                watches.enter_context(watch_input(module, partial(normed, name)))
        yield found


def is_linear(group: Group, modules: Mapping[str, nn.Module], norms: Mapping[str, str]) -> bool:
    """Whether the units pass nothing but layers that a linear map can be folded into."""
    behind = set(norms.values())
    return (
        group.blocks == 1
        and group.level == 0
        and all(_folds(member, modules, behind) for member in group.members)
    )


def _folds(member: Member, modules: Mapping[str, nn.Module], behind: Collection[str]) -> bool:
    path = member.tensor.rpartition(".")[0]
    module = modules.get(path)
    if isinstance(module, _BatchNorm):
        return path in behind
    if module is None or getattr(module, "groups", 1) != 1 or member.role == "scales":
        return False
    return uses_its_weight(module, _LAYERS)


def norm_ratio(state: Mapping[str, Tensor], norm: str, modules: Mapping[str, nn.Module]) -> Tensor:
    """By what a BatchNorm multiplies each unit in evaluation, `(n,)`, float64."""
    module = modules[norm]
    assert isinstance(module, _BatchNorm)
    ratio = (state[f"{norm}.running_var"].double() + module.eps).rsqrt()
    scale = state.get(f"{norm}.weight")
    return ratio if scale is None else ratio * scale.double()


def floored(ratio: Tensor) -> Tensor:
    """Ratios that can be divided by: a unit that a's norm has nearly switched off would blow up."""
    least = (_SWITCHED_OFF * ratio.abs().median()).clamp_min(1e-12)
    return torch.where(ratio.abs() < least, torch.where(ratio < 0, -least, least), ratio)


def scale_layer(state: dict[str, Tensor], layer: str, norm: str, factor: Tensor) -> None:
    """Multiply what a layer makes, and the mean that its norm expects of it."""
    for name in (f"{layer}.weight", f"{layer}.bias", f"{norm}.running_mean"):
        if name in state:
            tensor = state[name]
            shaped = factor.to(tensor.device).reshape(-1, *[1] * (tensor.ndim - 1))
            state[name] = (tensor.double() * shaped).to(tensor.dtype)


def take_scale(
    state: dict[str, Tensor],
    state_a: Mapping[str, Tensor],
    norm: str,
    ratio: Tensor,
    modules: Mapping[str, nn.Module],
) -> None:
    """Give a norm the running variance of a's, and the scale that goes with a ratio."""
    module = modules[norm]
    assert isinstance(module, _BatchNorm)
    variance = state_a[f"{norm}.running_var"]
    state[f"{norm}.running_var"] = variance.detach().clone().to(state[f"{norm}.running_var"])
    if f"{norm}.weight" in state:
        scale = ratio * (variance.double() + module.eps).sqrt()
        state[f"{norm}.weight"] = scale.to(state[f"{norm}.weight"])


def fold(state: dict[str, Tensor], group: Group, found: LinearMap) -> None:
    """Fold the map of one group into a state dict.

    The scale and running variance of a norm stay: `take_scale` gives it those of a's.
    """
    for member in group.members:
        if member.role == "scales" and member.tensor.endswith((".weight", ".running_var")):
            continue
        matrix = found.inverse if member.role == "reads" else found.forward.T
        tensor = state[member.tensor]
        matrix = matrix.to(tensor.device)
        rows = tensor.double().reshape(member.shape).movedim(member.axis, 0)
        new = rows.clone()
        index = member.index.to(tensor.device)
        new[index] = torch.einsum("ij,j...->i...", matrix, rows[index])
        new = new.movedim(0, member.axis).reshape(tensor.shape)
        state[member.tensor] = new.to(tensor.dtype)
