"""Activation matching: units that respond alike on the data belong together.

Source: Li et al. 2015, "Convergent learning"; called "Permute" by Jordan et al. 2022
(REPAIR) and by NP Merge.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_merge.align.assignment import assign_blocks, assign_wholes
from lightning_merge.align.group import Group, Permutation
from lightning_merge.align.matching import Matching
from lightning_merge.align.spec import PermutationSpec
from lightning_merge.batches import inputs_of, to_device_of
from lightning_merge.errors import AlignmentError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Tap:
    """A place where a group's units can be observed.

    Attributes:
        module: The layer that is watched.
        output: Whether its output is watched, or its input.
        dim: The dimension along which the units lie.
        index: The units' positions along it, `(size, repeat)`.
    """

    module: str
    output: bool
    dim: int
    index: Tensor = field(repr=False)


class ActivationMatching(Matching):
    """Match units by the correlation of their activations, all groups in one pass of the data.

    Units are observed after normalisation and activation, where the next layer reads them;
    a residual stream adds up the correlations at all its readers. Attention heads are
    matched as wholes by the best assignment of the units inside them.
    """

    needs_data: ClassVar[bool] = True

    def match(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        progress: bool = False,
    ) -> Permutation:
        """The permutation of b that makes its units correspond to those of a.

        Args:
            spec: The spec of their architecture.
            model_a: The network that stays as it is.
            model_b: The network whose permutation is sought.
            batches: Read once; tensors, tuples that begin with the input, or dicts with
                `image`, `x` or `input`.
            progress: Whether to show a progress bar.

        Returns:
            A permutation for every group; groups that can be observed nowhere keep their order.

        Raises:
            AlignmentError: There are no batches.
        """
        scores = correlations(spec, model_a, model_b, batches, progress)
        return assign_groups(spec, scores)

    def align(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        progress: bool = False,
    ) -> dict[str, Tensor]:
        """The state dict of b, its units in the order of a's."""
        permutation = self.match(spec, model_a, model_b, batches, progress)
        return spec.apply(model_b.state_dict(), permutation)


def assign_groups(spec: PermutationSpec, scores: dict[str, Tensor]) -> Permutation:
    """Solve every group from its score matrix, `(size, size)`, rows a and columns b."""
    result = spec.identity()
    done: set[str] = set()
    for group in spec.groups:
        inside = [
            (g, scores[g.name])
            for g in spec.groups
            if g.parent == group.name and g.blocks == group.size and g.name in scores
        ]
        if inside:
            found = assign_wholes(inside, None)
            result[group.name] = found.pop("")
            result.update(found)
            done.update((group.name, *found))
    for group in spec.groups:
        if group.name not in done and group.name in scores:
            result[group.name] = assign_blocks(scores[group.name], group.blocks)
    return result


def correlations(
    spec: PermutationSpec,
    model_a: nn.Module,
    model_b: nn.Module,
    batches: Iterable[Any],
    progress: bool = False,
) -> dict[str, Tensor]:
    """For each group the summed correlations of a's units with b's, `(size, size)`, float64.

    Raises:
        AlignmentError: There are no batches.
    """
    taps = {group.name: find_taps(group, model_a) for group in spec.groups}
    taps = {name: found for name, found in taps.items() if found}
    places = sorted({(tap.module, tap.output) for found in taps.values() for tap in found})
    moments: dict[tuple[str, int], Moments] = {}
    seen = 0
    with evaluation(model_a), evaluation(model_b), torch.no_grad():
        for batch in _tracked(batches, progress):
            x = inputs_of(batch)
            values_a = record(model_a, places, to_device_of(model_a, x))
            values_b = record(model_b, places, to_device_of(model_b, x))
            for name, found in taps.items():
                for number, tap in enumerate(found):
                    key = (tap.module, tap.output)
                    for a, b in zip(values_a[key], values_b[key], strict=True):
                        moment = moments.setdefault((name, number), Moments())
                        moment.update(samples(a, tap), samples(b, tap))
            seen += 1
    if not seen:
        raise AlignmentError("activation matching needs at least one batch, there was none")
    result: dict[str, Tensor] = {}
    for (name, _), moment in moments.items():
        score = moment.correlation()
        result[name] = result[name] + score if name in result else score
    return result


class Moments:
    """Running means, variances and covariances of two sets of units.

    Products are taken in float32 about a shift near the mean, where they are exact enough,
    and summed in float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shift_a: Tensor | None = None

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add samples, `(N, n)` each, the rows being the same data."""
        if self.shift_a is None:
            self.shift_a, self.shift_b = a.mean(0), b.mean(0)
            zero = torch.zeros(a.shape[1], dtype=torch.float64, device=a.device)
            self.sum_a, self.sum_b = zero, zero
            self.square_a, self.square_b = zero, zero
            self.product = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64, device=a.device)
        a, b = a - self.shift_a, (b - self.shift_b).to(a.device)
        self.count += len(a)
        self.sum_a = self.sum_a + a.sum(0, dtype=torch.float64)
        self.sum_b = self.sum_b + b.sum(0, dtype=torch.float64)
        self.square_a = self.square_a + a.square().sum(0, dtype=torch.float64)
        self.square_b = self.square_b + b.square().sum(0, dtype=torch.float64)
        self.product += a.T @ b

    def correlation(self) -> Tensor:
        """Pearson correlations, `(n, n)`; units that never vary have correlation 0."""
        n = self.count
        mean_a, mean_b = self.sum_a / n, self.sum_b / n
        covariance = self.product / n - mean_a[:, None] * mean_b
        scales = []
        for square, mean, shift in (
            (self.square_a, mean_a, self.shift_a),
            (self.square_b, mean_b, self.shift_b),
        ):
            assert shift is not None
            variance = square / n - mean.square()
            floor = (1e-6 * shift.double().abs()).square().clamp_min(1e-30)
            alive = variance > floor
            scales.append(torch.where(alive, variance.clamp_min(1e-30).rsqrt(), 0.0))
        return covariance * scales[0][:, None] * scales[1]


def find_taps(group: Group, model: nn.Module) -> list[Tap]:
    """Where to observe a group: the inputs of the layers that read it, else its makers' outputs."""
    modules = dict(model.named_modules())
    readers, makers = [], []
    for member in group.members:
        path, _, leaf = member.tensor.rpartition(".")
        module = modules.get(path)
        if leaf != "weight" or not isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            continue
        dim = -1 if isinstance(module, nn.Linear) else 1
        grouped = isinstance(module, _CONVOLUTIONS) and module.groups > 1
        if member.axes == (1,) and not grouped:
            readers.append(Tap(path, False, dim, member.index))
        elif grouped and member.axes in ((0, 2), (0,)):
            depthwise = module.groups == module.in_channels
            if member.axes == (0, 2) or depthwise:
                readers.append(Tap(path, False, dim, member.index))
        elif member.axes in ((0,), (0, 1)):
            makers.append(Tap(path, True, dim, member.index))
    return readers or makers


def samples(value: Tensor, tap: Tap) -> Tensor:
    """The observations at a tap as a matrix `(N, size)`, at least float32."""
    size, repeat = tap.index.shape
    value = value.movedim(tap.dim, -1)
    index = tap.index.to(value.device)
    whole = repeat == 1 and size == value.shape[-1]
    if not whole or not torch.equal(tap.index[:, 0], torch.arange(size)):
        value = value[..., index.reshape(-1)]
    value = value.reshape(-1, size, repeat) if repeat > 1 else value.reshape(-1, size)
    if repeat > 1:
        value = value.transpose(1, 2).reshape(-1, size)
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def record(
    model: nn.Module, places: list[tuple[str, bool]], x: Tensor
) -> dict[tuple[str, bool], list[Tensor]]:
    """Run the model and return what passed each place, in the order of the calls."""
    found: dict[tuple[str, bool], list[Tensor]] = {place: [] for place in places}
    modules = dict(model.named_modules())
    handles = []
    versions: list[tuple[Tensor, int]] = []

    def keep(place: tuple[str, bool], value: Any) -> None:
        if isinstance(value, tuple):
            value = value[0]
        # An in-place activation may follow a layer's output; inputs are checked below.
        found[place].append(value.clone() if place[1] else value)
        versions.append((value, value._version))

    for place in places:
        path, output = place
        if output:
            handles.append(
                modules[path].register_forward_hook(lambda _m, _i, o, place=place: keep(place, o))
            )
        else:
            handles.append(
                modules[path].register_forward_pre_hook(lambda _m, i, place=place: keep(place, i))
            )
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and every module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _tracked(batches: Iterable[Any], progress: bool) -> Iterable[Any]:
    if not progress:
        return batches
    from rich.progress import track

    return track(batches, description="Matching activations")
