"""CCA Merge: a linear map of b's units, not a permutation, onto what they share with a's.

Source: Horoi et al. 2024, "Harmony in Diversity: Merging Neural Networks with Canonical
Correlation Analysis".
"""

from collections.abc import Iterable, Mapping
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
    that read them `W T'^-1`. Between linear layers that changes nothing; a ReLU and a
    BatchNorm do not commute with it, so **b's function changes**. Norm scale and shift and
    running means are mapped like the units, running variances by the squares of the map's
    entries, so that they cannot become negative; estimating the statistics anew
    (`reset_batchnorm`) after averaging is part of the method.

    Groups whose units pass anything but convolutions, linear layers and BatchNorm
    (attention heads, LayerNorm, depthwise convolutions, LayerScale) are permuted as
    `ActivationMatching` would.

    Args:
        gamma: Ridge added to both covariances, relative to their mean variance. 0 is CCA
            itself, which follows noise where there are few data; a large value leaves an
            orthogonal map, the Procrustes rotation of b onto a, times the ratio of their
            scales. Choose it on examples held out of the training set.

    Raises:
        AlignmentError: `gamma` is negative or not finite.
    """

    needs_data: ClassVar[bool] = True

    def __init__(self, gamma: float = 1e-2) -> None:
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
        linear = {g.name for g in spec.groups if _is_linear(g, modules)}
        found = observe(spec, model_a, model_b, batches, progress, own=True)
        scores = {
            name: summed_correlation(name, moments)
            for name, moments in found.items()
            if name not in linear
        }
        state = spec.apply(model_b.state_dict(), assign_groups(spec, scores))
        for group in spec.groups:
            if group.name in linear and group.name in found:
                moments = _pooled(group.name, found.pop(group.name))
                _apply(state, group, transform(*moments, self.gamma), modules)
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


def _is_linear(group: Group, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the units pass nothing but layers that a linear map can be folded into."""
    if group.blocks > 1 or group.level > 0:
        return False
    return all(_role(member, modules) for member in group.members)


def _role(member: Member, modules: Mapping[str, nn.Module]) -> str:
    """What becomes of a member: `made`, `read`, `squared`, or nothing that is known."""
    path, _, leaf = member.tensor.rpartition(".")
    module = modules.get(path)
    if isinstance(module, _LAYERS):
        grouped = getattr(module, "groups", 1) > 1
        if leaf == "weight" and member.axes == (1,) and not grouped:
            return "read"
        if leaf in ("weight", "bias") and member.axes == (0,) and not grouped:
            return "made"
    if isinstance(module, _BatchNorm) and member.axes == (0,):
        return "squared" if leaf == "running_var" else "made"
    return ""


def _apply(
    state: dict[str, Tensor], group: Group, found: Transform, modules: Mapping[str, nn.Module]
) -> None:
    """Fold the map of one group into a state dict."""
    maps = {
        "made": found.forward.T,
        "squared": found.forward.T.square(),
        "read": found.inverse,
    }
    for member in group.members:
        tensor = state[member.tensor]
        matrix = maps[_role(member, modules)].to(tensor.device)
        rows = tensor.double().reshape(member.shape).movedim(member.axis, 0)
        new = rows.clone()
        index = member.index.to(tensor.device)
        new[index] = torch.einsum("ij,j...->i...", matrix, rows[index])
        new = new.movedim(0, member.axis).reshape(tensor.shape)
        state[member.tensor] = new.to(tensor.dtype)


__all__ = ["CCAMatching", "Transform", "transform"]
