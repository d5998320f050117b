"""CCA Merge: a linear map of b's units, not a permutation, onto what they share with a's.

Source: Horoi et al. 2024, "Harmony in Diversity: Merging Neural Networks with Canonical
Correlation Analysis".
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.align.activation import assign_groups, observe, summed_correlation
from lightning_merge.align.canonical import Spectra, Transform
from lightning_merge.align.group import Group, Member
from lightning_merge.align.matching import Matching, matchings
from lightning_merge.align.moments import Moments
from lightning_merge.align.spec import PermutationSpec
from lightning_merge.errors import AlignmentError
from lightning_merge.progress import tracked

GAMMAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""The candidates for gamma, relative to the mean variance: from CCA to a rotation."""

Evaluate = Callable[[dict[str, Tensor]], float]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# A norm's ratio below this share of the layer's median is not divided by.
_SWITCHED_OFF = 1e-2


@matchings.register()
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
            scales. None, the default, chooses among the candidates: `align` then needs
            `evaluate`, which is to score on examples held out of the training set.
        candidates: What is chosen among; `GAMMAS` if not given.

    Raises:
        AlignmentError: A gamma is negative or not finite, or there is no candidate.
    """

    needs_data: ClassVar[bool] = True

    def __init__(self, gamma: float | None = None, candidates: list[float] | None = None) -> None:
        self.gamma = gamma
        self.candidates = list(GAMMAS if candidates is None else candidates)
        if gamma is None and not self.candidates:
            raise AlignmentError("there are no candidates for gamma; name some, or give gamma")
        for value in self.candidates if gamma is None else [gamma]:
            if not 0 <= value < math.inf:
                raise AlignmentError(f"gamma is {value}; it must be 0 or a positive number")

    def align(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        progress: bool = False,
        evaluate: Evaluate | None = None,
    ) -> dict[str, Tensor]:
        """The state dict of b, its units mapped onto a's.

        Args:
            spec: The spec of their architecture.
            model_a: The network that stays as it is.
            model_b: The network to align; it is not changed.
            batches: Read once, however many candidates there are.
            progress: Whether to show a progress bar.
            evaluate: Where gamma is to be chosen: scores the state dict of the aligned b,
                higher is better. The paper's choice is the accuracy of its average with a,
                after BatchNorm reset, on examples held out of train.

        Raises:
            AlignmentError: There are no batches, activations that are not finite, or neither
                gamma nor `evaluate`.
        """
        if self.gamma is None and evaluate is None:
            raise AlignmentError(
                "CCAMatching has no gamma, and nothing here to choose it by: give gamma, or "
                "`evaluate` with examples held out of train"
            )
        observed = self.observe(spec, model_a, model_b, batches, progress)
        if self.gamma is not None:
            return observed.state_for(self.gamma)
        assert evaluate is not None
        return observed.state_for(choose(observed, self.candidates, evaluate, progress)[0])

    label = "CCA"

    @property
    def chooses(self) -> bool:  # type: ignore[override]
        """Whether gamma is to be chosen."""
        return self.gamma is None

    def aligned(self, spec, a, b, batches, *, score=None, progress=False):  # type: ignore
        """As align."""
        from lightning_merge.align.matching import Aligned

        observed = self.observe(spec, a, b, batches, progress)
        if self.gamma is not None:
            return Aligned(observed.state_for(self.gamma))
        gamma, scores = choose(observed, self.candidates, score, progress)
        named = {f"{candidate:g}": value for candidate, value in scores.items()}
        return Aligned(observed.state_for(gamma), {"gamma": gamma, "scores": named})

    def observe(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        progress: bool = False,
    ) -> "Observation":
        """What the maps of every gamma are computed from, in one pass of the data.

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
        scaled = {k: v for k, v in norms.items() if f"{v}.running_mean" in tensors}
        for layer, norm in scaled.items():
            _scale(state, layer, norm, _ratio(state, norm, modules))
        spectra = [(g, Spectra(*_pooled(g.name, found.pop(g.name)))) for g in mapped]
        return Observation(state, model_a.state_dict(), modules, scaled, spectra)


class Observation:
    """Two networks' covariances, and what a map of b's units is folded into.

    Made by `CCAMatching.observe`; holds on to the weights of both networks.
    """

    def __init__(
        self,
        state: dict[str, Tensor],
        state_a: dict[str, Tensor],
        modules: Mapping[str, nn.Module],
        norms: Mapping[str, str],
        spectra: Sequence[tuple[Group, Spectra]],
    ) -> None:
        self._state, self._state_a = state, state_a
        self._modules, self._norms, self._spectra = modules, norms, spectra

    def state_for(self, gamma: float) -> dict[str, Tensor]:
        """The state dict of b, mapped with a ridge of `gamma` times the mean variance."""
        state = dict(self._state)
        for group, spectra in self._spectra:
            _apply(state, group, spectra.transform(gamma), self._modules)
        for layer, norm in self._norms.items():
            ratio = _floored(_ratio(self._state_a, norm, self._modules))
            _scale(state, layer, norm, 1 / ratio)
            _take_scale(state, self._state_a, norm, ratio, self._modules)
        return state


def choose(
    observed: Observation,
    candidates: Sequence[float],
    evaluate: Evaluate,
    progress: bool = False,
) -> tuple[float, dict[float, float]]:
    """The best gamma for an observed pair of networks.

    Args:
        observed: The pair.
        candidates: Among which to choose.
        evaluate: Scores the state dict of the aligned b, higher is better; NaN is worst.
        progress: Whether to show a progress bar.

    Returns:
        The candidate with the highest score (of several the largest, which follows noise the
        least), and every candidate's score.
    """
    scores = {
        gamma: float(evaluate(observed.state_for(gamma)))
        for gamma in tracked(candidates, "CCA: choosing gamma", progress)
    }
    best = max(scores, key=lambda g: (-math.inf if math.isnan(scores[g]) else scores[g], g))
    return best, scores


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


__all__ = ["GAMMAS", "CCAMatching", "Observation", "choose"]
