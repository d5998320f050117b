"""CCA Merge: a linear map of b's units, not a permutation, onto what they share with a's.

Source: Horoi et al. 2024, "Harmony in Diversity: Merging Neural Networks with Canonical
Correlation Analysis".
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_merge.align.matching.activation import assign_groups, token_orders
from lightning_merge.align.matching.cca_fold import (
    floored,
    fold,
    is_linear,
    norm_ratio,
    norms_behind_layers,
    scale_layer,
    take_scale,
)
from lightning_merge.align.matching.cca_map import LinearMap, Spectra
from lightning_merge.align.matching.matching import (
    Aligned,
    Matching,
    Score,
    matchings,
    nothing_to_align,
)
from lightning_merge.align.matching.moments import Moments
from lightning_merge.align.matching.observe import (
    checked_finite,
    observe,
    summed_correlation,
    with_state,
)
from lightning_merge.errors import AlignmentError
from lightning_merge.progress import tracked
from lightning_merge.symmetry.copies import with_copies
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.unit_group import Group

GAMMAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""The candidates for gamma, relative to the mean variance: from CCA to a rotation."""

DEFAULT_GAMMA = 0.1
"""The gamma that is taken where none is given and there is no score to choose by."""


@matchings.register(
    paper="Horoi et al. 2024, Harmony in Diversity", needs="unlabelled training images"
)
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
            scales. None, the default, chooses among the candidates by the `score` that `align`
            is given, which should be computed on examples held out of the training set;
            without a `score` it is `DEFAULT_GAMMA`, 0.1.
        candidates: What is chosen among; `GAMMAS` if not given.

    Raises:
        AlignmentError: A gamma is negative or not finite, or there is no candidate.
    """

    label: ClassVar[str] = "CCA"
    keeps_function: ClassVar[bool] = False

    def __init__(self, gamma: float | None = None, candidates: list[float] | None = None) -> None:
        self.gamma = gamma
        self.candidates = list(GAMMAS if candidates is None else candidates)
        if gamma is None and not self.candidates:
            raise AlignmentError("there are no candidates for gamma; name some, or give gamma")
        for value in self.candidates if gamma is None else [gamma]:
            if not 0 <= value < math.inf:
                raise AlignmentError(f"gamma is {value}; it must be 0 or a positive number")

    @property
    def chooses(self) -> bool:
        """Whether gamma is to be chosen by `score`."""
        return self.gamma is None

    def align(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        *,
        score: Score | None = None,
        progress: bool = False,
    ) -> dict[str, Tensor]:
        """The state dict of b, its units mapped onto a's; batches are read once for all candidates.

        The paper's `score` is the accuracy of the average with a, after BatchNorm reset, on
        examples held out of train.

        Raises:
            AlignmentError: There are no batches, or activations that are not finite.
        """
        return self.aligned(spec, model_a, model_b, batches, score=score, progress=progress).state

    def aligned(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        *,
        score: Score | None = None,
        progress: bool = False,
    ) -> Aligned:
        """What `align` gives, with the gamma that it took and each candidate's score.

        The choice is `{"gamma": 0.01, "scores": {"0.001": 0.93, ...}}` where gamma was chosen by
        `score`, `{"gamma": DEFAULT_GAMMA}` where the default was taken, and None where gamma
        was given.
        """
        observed = self.observe(spec, model_a, model_b, batches, progress)
        if self.gamma is not None:
            return Aligned(observed.state_for(self.gamma))
        if score is None:
            return Aligned(observed.state_for(DEFAULT_GAMMA), {"gamma": DEFAULT_GAMMA})
        gamma, scores = choose(observed, self.candidates, score, progress)
        listed = {f"{candidate:g}": value for candidate, value in scores.items()}
        return Aligned(observed.state_for(gamma), {"gamma": gamma, "scores": listed})

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
        tokens = token_orders(spec, model_a, model_b)
        if tokens:
            model_b = with_state(model_b, spec.apply(model_b.state_dict(), tokens))
        with norms_behind_layers(model_a) as norms:
            found = observe(spec, model_a, model_b, batches, progress, own=True)
        nothing_to_align(spec)
        mapped = [g for g in spec.groups if g.name in found and is_linear(g, modules, norms)]
        names = {group.name for group in mapped}
        scores = {n: summed_correlation(n, m) for n, m in found.items() if n not in names}
        state_b = model_b.state_dict()
        permutation = assign_groups(spec, scores, model_a.state_dict(), state_b, unknown=names)
        state = spec.apply(state_b, permutation)
        tensors = {m.tensor for group in mapped for m in group.members}
        scaled = {k: v for k, v in norms.items() if f"{v}.running_mean" in tensors}
        spectra = [(g, Spectra(*_pooled(g.name, found.pop(g.name)))) for g in mapped]
        return Observation(state, model_a.state_dict(), modules, scaled, spectra, spec.copies)


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
        copies: list[dict[str, str]],
    ) -> None:
        self._state, self._state_a = state, state_a
        self._modules, self._norms, self._spectra = modules, norms, spectra
        self._copies = copies

    def state_for(self, gamma: float) -> dict[str, Tensor]:
        """The state dict of b, mapped with a ridge of `gamma` times the mean variance."""
        maps = [(group, spectra.linear_map(gamma)) for group, spectra in self._spectra]
        return with_copies(self._state, self._copies, partial(self._folded, maps), self._state_a)

    def _folded(
        self,
        maps: Sequence[tuple[Group, LinearMap]],
        given: Mapping[str, Tensor],
        a: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        state = dict(given)
        for layer, norm in self._norms.items():
            scale_layer(state, layer, norm, norm_ratio(given, norm, self._modules))
        for group, found in maps:
            fold(state, group, found)
        for layer, norm in self._norms.items():
            ratio = floored(norm_ratio(a, norm, self._modules))
            scale_layer(state, layer, norm, 1 / ratio)
            take_scale(state, a, norm, ratio, self._modules)
        return state


def choose(
    observed: Observation,
    candidates: Sequence[float],
    score: Score,
    progress: bool = False,
) -> tuple[float, dict[float, float]]:
    """The best gamma for an observed pair of networks, and every candidate's score.

    A score is of the state dict of the aligned b; higher is better and NaN is worst. Of several
    that are best it is the largest gamma, which follows noise the least.
    """
    scores = {
        gamma: float(score(observed.state_for(gamma)))
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
        parts = [checked_finite(name, part) for part in moment.covariances()]
        scale = parts[0].diagonal().mean()
        if scale > 0:
            scaled = [part / scale for part in parts]
            total = [t + s for t, s in zip(total, scaled, strict=True)] if total else scaled
    if not total:
        total = list(moments[0].covariances())
    return total[0].cpu(), total[1].cpu(), total[2].cpu()
