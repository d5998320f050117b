"""CCA Merge: a linear map of b's units, not a permutation, onto what they share with a's.

Source: Horoi et al. 2024, "Harmony in Diversity: Merging Neural Networks with Canonical
Correlation Analysis".
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.align.activation import assign_groups, observe, summed_correlation
from lightning_merge.align.group import Group, Member
from lightning_merge.align.matching import Matching
from lightning_merge.align.moments import Moments
from lightning_merge.align.spec import PermutationSpec
from lightning_merge.errors import AlignmentError

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# Directions in which units vary less than this share of their mean variance are noise.
_RANK = 1e-12
# A norm's ratio below this share of the layer's median is not divided by.
_SWITCHED_OFF = 1e-2


@dataclass(frozen=True)
class Transform:
    """A linear map of units and its inverse, `(n, n)` each, float64.

    Observations `y` of b's units, as rows, become `y @ forward`.
    """

    forward: Tensor
    inverse: Tensor


class CCAMatching(Matching):
    """Map b's units linearly onto a's by regularised canonical correlation analysis.

    With `T` the map of a group, the weights that make its units become `T' W` and those
    that read them `W T'^-1`. Between linear layers that changes nothing; a ReLU does not
    commute with it, so **b's function changes**. Nor does the scale of a BatchNorm: where
    one follows a layer, `T'` mixes the normalised units, and the layer's new rows are put
    into the scale in which a's norm expects them,
    `diag(1 / r_a) T' diag(r_b) W` with `r = scale / sqrt(running_var + eps)`; the norm then
    takes a's scale and running variance (never negative), and running means and shifts are
    mapped linearly. These statistics hold for evaluation of b alone; estimating them anew
    (`reset_batchnorm`) after averaging is part of the method.

    Groups whose units pass anything but convolutions, linear layers and BatchNorms right
    behind them (attention heads, LayerNorm, depthwise convolutions, LayerScale, the
    BatchNorms of pre-activation networks) are permuted as `ActivationMatching` would.

    Args:
        gamma: Ridge added to both covariances, relative to their mean variance. 0 is CCA
            itself, which follows noise where there are few data; a large value leaves an
            orthogonal map, the Procrustes rotation of b onto a, times the ratio of their
            scales. Choose it on examples held out of the training set.

    Raises:
        AlignmentError: `gamma` is negative or not finite.
    """

    needs_data: ClassVar[bool] = True

    def __init__(self, gamma: float = 0.1) -> None:
        if not 0 <= gamma < float("inf"):
            raise AlignmentError(f"gamma is {gamma}; it must be 0 or a positive number")
        self.gamma = gamma

    def align(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        progress: bool = False,
    ) -> dict[str, Tensor]:
        """The state dict of b, its units mapped onto a's.

        Args:
            spec: The spec of their architecture.
            model_a: The network that stays as it is.
            model_b: The network to align; it is not changed.
            batches: Read once.
            progress: Whether to show a progress bar.

        Raises:
            AlignmentError: There are no batches, or activations that are not finite.
        """
        modules = dict(model_a.named_modules())
        with _pairing(model_a) as norms:
            found = observe(spec, model_a, model_b, batches, progress, own=True)
        mapped = [g for g in spec.groups if g.name in found and _is_linear(g, modules, norms)]
        names = {group.name for group in mapped}
        scores = {n: summed_correlation(n, m) for n, m in found.items() if n not in names}
        state = spec.apply(model_b.state_dict(), assign_groups(spec, scores))
        tensors = {m.tensor for group in mapped for m in group.members}
        for layer, norm in norms.items():
            if f"{norm}.running_mean" in tensors:
                _scale(state, layer, norm, _ratio(state, norm, modules))
        for group in mapped:
            moments = _pooled(group.name, found.pop(group.name))
            _apply(state, group, transform(*moments, self.gamma), modules)
        state_a = model_a.state_dict()
        for layer, norm in norms.items():
            if f"{norm}.running_mean" in tensors:
                ratio = _floored(_ratio(state_a, norm, modules))
                _scale(state, layer, norm, 1 / ratio)
                _take_scale(state, state_a, norm, ratio, modules)
        return state


def transform(s_aa: Tensor, s_ab: Tensor, s_bb: Tensor, gamma: float) -> Transform:
    """The regularised CCA map of b's units onto a's.

    With `S~ = S + gamma mean(diag S) I` and `U s V' = svd(S~aa^-1/2 Sab S~bb^-1/2)` it is
    `T = S~bb^-1/2 V U' S~aa^1/2`. Without a ridge, directions that hardly vary make the map
    ill-conditioned. Units of which none varies, in either network, are left as they are.

    Args:
        s_aa: Covariance of a's units, `(n, n)`.
        s_ab: Covariance of a's units with b's, `(n, n)`.
        s_bb: Covariance of b's units, `(n, n)`.
        gamma: Ridge, relative to the mean variance.
    """
    if not (s_aa.diagonal().sum() > 0 and s_bb.diagonal().sum() > 0):
        one = torch.eye(len(s_aa), dtype=torch.float64, device=s_aa.device)
        return Transform(one, one.clone())
    root_a, whiten_a = _roots(s_aa.double(), gamma)
    root_b, whiten_b = _roots(s_bb.double(), gamma)
    u, _, vt = torch.linalg.svd(whiten_a @ s_ab.double() @ whiten_b)
    rotation = vt.T @ u.T
    return Transform(whiten_b @ rotation @ root_a, whiten_a @ rotation.T @ root_b)


def _roots(covariance: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The square root of a regularised covariance, and the inverse of it, `(n, n)` each."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    mean = covariance.diagonal().mean()
    # Rounding leaves eigenvalues below zero; a floor keeps the map invertible.
    values = (values + gamma * mean).clamp_min(_RANK * mean)
    root = values.sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _pooled(name: str, moments: list[Moments]) -> tuple[Tensor, Tensor, Tensor]:
    """One set of covariances from all taps, each weighing the same.

    A tap counts relative to a's mean variance there: one factor for a and b alike, so that
    their ratio of scales, which the map has to undo, is kept.
    """
    total: list[Tensor] = []
    for moment in moments:
        parts = moment.covariances()
        scale = parts[0].diagonal().mean()
        if not all(torch.isfinite(part).all() for part in parts):
            raise AlignmentError(
                f"group {name!r}: the activations are not finite; check both networks' weights "
                "and the data"
            )
        if scale > 0:
            scaled = [part / scale for part in parts]
            total = [t + s for t, s in zip(total, scaled, strict=True)] if total else scaled
    if not total:
        total = list(moments[0].covariances())
    return total[0].cpu(), total[1].cpu(), total[2].cpu()


@contextmanager
def _pairing(model: nn.Module) -> Iterator[dict[str, str]]:
    """A dict that fills, as the model runs, with the BatchNorm right behind each layer."""
    found: dict[str, str] = {}
    last: list[tuple[str, Tensor]] = []
    handles = []
    for name, module in model.named_modules():

        def made(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
            last[:] = [(name, output)]

        def normed(_module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            if last and inputs[0] is last[0][1]:
                found[last[0][0]] = name

        if isinstance(module, _LAYERS):
            handles.append(module.register_forward_hook(made))
        elif isinstance(module, _BatchNorm) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(normed))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_linear(group: Group, modules: Mapping[str, nn.Module], norms: Mapping[str, str]) -> bool:
    """Whether the units pass nothing but layers that a linear map can be folded into."""
    if group.blocks > 1 or group.level > 0:
        return False
    behind = set(norms.values())
    for member in group.members:
        path = member.tensor.rpartition(".")[0]
        if not _role(member, modules) or (
            isinstance(modules[path], _BatchNorm) and path not in behind
        ):
            return False
    return True


def _role(member: Member, modules: Mapping[str, nn.Module]) -> str:
    """What becomes of a member: `made`, `read` or `taken` (from a), or nothing that is known."""
    path, _, leaf = member.tensor.rpartition(".")
    module = modules.get(path)
    if isinstance(module, _LAYERS):
        grouped = getattr(module, "groups", 1) > 1
        if leaf == "weight" and member.axes == (1,) and not grouped:
            return "read"
        if leaf in ("weight", "bias") and member.axes == (0,) and not grouped:
            return "made"
    if isinstance(module, _BatchNorm) and member.axes == (0,):
        return "taken" if leaf in ("weight", "running_var") else "made"
    return ""


def _ratio(state: Mapping[str, Tensor], norm: str, modules: Mapping[str, nn.Module]) -> Tensor:
    """By what a BatchNorm multiplies each unit in evaluation, `(n,)`, float64."""
    module = modules[norm]
    assert isinstance(module, _BatchNorm)
    ratio = (state[f"{norm}.running_var"].double() + module.eps).rsqrt()
    scale = state.get(f"{norm}.weight")
    return ratio if scale is None else ratio * scale.double()


def _floored(ratio: Tensor) -> Tensor:
    """Ratios that can be divided by: a unit that a's norm has nearly switched off would blow up."""
    least = (_SWITCHED_OFF * ratio.abs().median()).clamp_min(1e-12)
    return torch.where(ratio.abs() < least, torch.where(ratio < 0, -least, least), ratio)


def _scale(state: dict[str, Tensor], layer: str, norm: str, factor: Tensor) -> None:
    """Multiply what a layer makes, and the mean that its norm expects of it."""
    for name in (f"{layer}.weight", f"{layer}.bias", f"{norm}.running_mean"):
        if name in state:
            tensor = state[name]
            shaped = factor.to(tensor.device).reshape(-1, *[1] * (tensor.ndim - 1))
            state[name] = (tensor.double() * shaped).to(tensor.dtype)


def _take_scale(
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


def _apply(
    state: dict[str, Tensor], group: Group, found: Transform, modules: Mapping[str, nn.Module]
) -> None:
    """Fold the map of one group into a state dict."""
    maps = {"made": found.forward.T, "read": found.inverse}
    for member in group.members:
        role = _role(member, modules)
        if role == "taken":
            continue
        tensor = state[member.tensor]
        matrix = maps[role].to(tensor.device)
        rows = tensor.double().reshape(member.shape).movedim(member.axis, 0)
        new = rows.clone()
        index = member.index.to(tensor.device)
        new[index] = torch.einsum("ij,j...->i...", matrix, rows[index])
        new = new.movedim(0, member.axis).reshape(tensor.shape)
        state[member.tensor] = new.to(tensor.dtype)


__all__ = ["CCAMatching", "Transform", "transform"]
