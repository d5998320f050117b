"""Activation matching: units that respond alike on the data belong together.

Source: Li et al. 2015, "Convergent learning"; called "Permute" by Jordan et al. 2022
(REPAIR) and by NP Merge.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_merge.align.assignment import assign_blocks, assign_wholes
from lightning_merge.align.group import Permutation
from lightning_merge.align.matching import Matching
from lightning_merge.align.moments import Moments
from lightning_merge.align.spec import PermutationSpec
from lightning_merge.align.taps import Place, Tap, evaluation, find_taps, samples, watching
from lightning_merge.batches import inputs_of, to_device_of
from lightning_merge.errors import AlignmentError
from lightning_merge.progress import tracked


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
        AlignmentError: There are no batches, or activations that are not finite.
    """
    found = observe(spec, model_a, model_b, batches, progress)
    return {name: summed_correlation(name, moments) for name, moments in found.items()}


def summed_correlation(name: str, moments: Iterable[Moments]) -> Tensor:
    """The sum of a group's correlations over its taps, `(size, size)`.

    Raises:
        AlignmentError: Activations were not finite.
    """
    total = torch.stack([moment.correlation() for moment in moments]).sum(0)
    if not torch.isfinite(total).all():
        raise AlignmentError(
            f"group {name!r}: the activations are not finite; check both networks' weights "
            "and the data"
        )
    return total


def observe(
    spec: PermutationSpec,
    model_a: nn.Module,
    model_b: nn.Module,
    batches: Iterable[Any],
    progress: bool = False,
    own: bool = False,
) -> dict[str, list[Moments]]:
    """For each group the joint moments of both networks' units, at each of its taps.

    Args:
        spec: The spec of their architecture.
        model_a: One network.
        model_b: The other.
        batches: Read once.
        progress: Whether to show a progress bar.
        own: Whether to keep the covariances inside each network too.

    Raises:
        AlignmentError: There are no batches.
    """
    observer = _Observer(spec, model_a, model_b, own)
    with evaluation(model_a, model_b):
        for batch in tracked(batches, "Matching activations", progress):
            observer.read(inputs_of(batch))
    if not observer.seen:
        raise AlignmentError("matching activations needs at least one batch, there was none")
    return observer.moments


class _Observer:
    """Runs both networks, a first, and adds b's values to the moments as soon as they exist."""

    def __init__(
        self, spec: PermutationSpec, model_a: nn.Module, model_b: nn.Module, own: bool
    ) -> None:
        self.model_a, self.model_b, self.own = model_a, model_b, own
        self.taps: dict[Place, list[tuple[str, Tap]]] = {}
        for group in spec.groups:
            for tap in find_taps(group, model_a):
                self.taps.setdefault(tap.place, []).append((group.name, tap))
        self.moments: dict[str, list[Moments]] = {}
        self.number: dict[tuple[str, Place], Moments] = {}
        self.changing: set[Place] = set()
        self.seen = 0

    def read(self, x: Tensor) -> None:
        """Add one batch of inputs."""
        x = x.clone() if x.is_inference() else x
        values = self.values_of_a(to_device_of(self.model_a, x))
        if not self.seen:
            self.drop_repeated(values)

        def receive(place: Place, b: Tensor) -> None:
            a = values[place].pop(0)
            for name, tap in self.taps[place]:
                self.moment(name, place).update(samples(a, tap), samples(b, tap))

        with watching(self.model_b, self.taps, receive):
            self.model_b(to_device_of(self.model_b, x))
        self.seen += 1

    def values_of_a(self, x: Tensor) -> dict[Place, list[Tensor]]:
        """What passes each place in a, in the order of the calls.

        A value that a later layer overwrites is kept as a copy; which ones are is seen from
        the first run, which is then repeated.
        """
        values: dict[Place, list[Tensor]] = {place: [] for place in self.taps}
        versions: list[tuple[Place, Tensor, int]] = []

        def receive(place: Place, value: Tensor) -> None:
            if place in self.changing:
                value = value.clone()
            values[place].append(value)
            versions.append((place, value, value._version))

        with watching(self.model_a, self.taps, receive):
            self.model_a(x)
        changed = {place for place, value, version in versions if value._version != version}
        if not changed:
            return values
        self.changing |= changed
        return self.values_of_a(x)

    def drop_repeated(self, values: dict[Place, list[Tensor]]) -> None:
        """Observe a tensor that several layers read only once."""
        first: dict[int, Place] = {}
        for place, listed in values.items():
            if len(listed) != 1:
                continue
            earlier = first.setdefault(id(listed[0]), place)
            if earlier == place:
                continue
            known = self.taps[earlier]
            rest = [
                (name, tap)
                for name, tap in self.taps[place]
                if not any(name == other and tap.sees_the_same_as(t) for other, t in known)
            ]
            self.taps[place] = rest
        self.taps = {place: taps for place, taps in self.taps.items() if taps}

    def moment(self, name: str, place: Place) -> Moments:
        """The moments of one group at one place."""
        key = name, place
        if key not in self.number:
            self.number[key] = Moments(self.own)
            self.moments.setdefault(name, []).append(self.number[key])
        return self.number[key]
