"""Activation matching: units that respond alike on the data belong together.

Source: Li et al. 2015, "Convergent learning"; called "Permute" by Jordan et al. 2022
(REPAIR) and by NP Merge.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_merge.align.assignment import assign_blocks, assign_wholes
from lightning_merge.align.group import Group, Permutation
from lightning_merge.align.matching import Matching, matchings
from lightning_merge.align.moments import Moments
from lightning_merge.align.shared import by_head, carrier, of_matched_heads
from lightning_merge.align.spec import PermutationSpec
from lightning_merge.align.taps import (
    Place,
    Tap,
    evaluation,
    find_taps,
    samples,
    thinning,
    watching,
)
from lightning_merge.batches import inputs_of, to_device_of
from lightning_merge.distributed import Share
from lightning_merge.errors import AlignmentError
from lightning_merge.progress import tracked

# Enough examples to tell a batch from a single one.
_PROBE = 2
# What values may take at least, in bytes, on a CPU and on a GPU, which needs larger batches.
_ROOM = (2**25, 2**30)


@matchings.register()
class ActivationMatching(Matching):
    """Match units by the correlation of their activations, all groups in one pass of the data.

    Units are observed after normalisation and activation, where the next layer reads them;
    a residual stream adds up the correlations at all its readers. Attention heads are
    matched as wholes by the best assignment of the units inside them.

    Comparing all pairs of units at every position can cost more than the networks (the hidden
    units of a transformer's MLP: four times the layer that reads them). There only every k-th
    position of each example counts, another k-th from batch to batch.

    Args:
        cost: What the products at a layer may cost, in multiplications, as a multiple of
            running it once; infinite if every position is to count everywhere. The default
            is chosen for speed; what it costs in quality has not been measured on trained networks.
    """

    label = "Permute"

    needs_data: ClassVar[bool] = True

    def __init__(self, cost: float = 0.25) -> None:
        self.cost = cost

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
        scores = correlations(spec, model_a, model_b, batches, progress, self.cost)
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
        inside = [(g, scores[g.name]) for g in _inside(spec, group) if g.name in scores]
        if inside:
            found = assign_wholes(inside, None)
            result[group.name] = found.pop("")
            result.update(found)
            done.update((group.name, *found))
    for group in spec.groups:
        if group.name not in done and group.name in scores:
            score = scores[group.name]
            heads = carrier(spec.groups, group)
            if heads is not None:
                score = of_matched_heads(score, result[heads.name])
            result[group.name] = assign_blocks(score, group.blocks)
    return result


def _inside(spec: PermutationSpec, group: Group) -> list[Group]:
    """The groups of units inside wholes (heads), each whole being a block of them."""
    return [g for g in spec.groups if g.parent == group.name and g.blocks == group.size]


def correlations(
    spec: PermutationSpec,
    model_a: nn.Module,
    model_b: nn.Module,
    batches: Iterable[Any],
    progress: bool = False,
    cost: float = math.inf,
) -> dict[str, Tensor]:
    """For each group the summed correlations of a's units with b's, `(size, size)`, float64.

    Units that several heads share are there once for each head, `(heads * size, heads * size)`.

    Raises:
        AlignmentError: There are no batches, or activations that are not finite.
    """
    found = observe(spec, model_a, model_b, batches, progress, cost=cost)
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
    cost: float = math.inf,
) -> dict[str, list[Moments]]:
    """For each group the joint moments of both networks' units, at each of its taps.

    Args:
        spec: The spec of their architecture.
        model_a: One network.
        model_b: The other.
        batches: Read once; a `Share` holds those of this rank, and the moments are then
            those of all ranks' batches.
        progress: Whether to show a progress bar.
        own: Whether to keep the covariances inside each network too.
        cost: As in `ActivationMatching`.

    Raises:
        AlignmentError: There are no batches.
    """
    observer = _Observer(spec, model_a, model_b, own, cost)
    with evaluation(model_a, model_b):
        for batch in tracked(batches, "Matching activations", progress):
            observer.read(inputs_of(batch))
    if not observer.seen:
        raise AlignmentError("matching activations needs at least one batch, there was none")
    if isinstance(batches, Share):
        for listed in observer.moments.values():
            for moments in listed:
                moments.sum_over_ranks()
    return observer.moments


class _Observer:
    """Runs both networks, a first, and adds b's values to the moments as soon as they exist.

    What a's layers read is kept until b's have read theirs. It may take half as much memory as
    the networks themselves, and batches that would need more are divided.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        own: bool,
        cost: float,
    ) -> None:
        self.model_a, self.model_b, self.own, self.cost = model_a, model_b, own, cost
        self.taps: dict[Place, list[tuple[str, Tap]]] = {}
        found = {group.name: find_taps(group, model_a) for group in spec.groups}
        for group in spec.groups:
            if any(found[g.name] for g in _inside(spec, group)):
                continue  # wholes are matched by the units inside them
            heads = carrier(spec.groups, group)
            for tap in found[group.name]:
                for one in tap.roles() if heads is None else by_head(tap, heads):
                    self.taps.setdefault(tap.place, []).append((group.name, one))
        self.moments: dict[str, list[Moments]] = {}
        self.of_tap: dict[tuple[str, int], Moments] = {}
        self.changing: set[Place] = set()
        self.at_once = 0
        self.seen = 0

    def read(self, x: Tensor) -> None:
        """Add one batch of inputs."""
        x = to_device_of(self.model_a, x.clone() if x.is_inference() else x)
        if not self.at_once:
            self.probe(x[:_PROBE])
        parts = math.ceil(len(x) / self.at_once)
        for part in x.split(math.ceil(len(x) / parts)):
            self.compare(part)

    def compare(self, x: Tensor) -> None:
        """Run both networks on inputs that are few enough."""
        values: dict[Place, list[list[Tensor]]] = {place: [] for place in self.taps}

        def keep(place: Place, a: Tensor) -> None:
            read = [self.samples(a, tap) for _, tap in self.taps[place]]
            values[place].append([s.clone() for s in read] if place in self.changing else read)

        def receive(place: Place, b: Tensor) -> None:
            for (name, tap), a in zip(self.taps[place], values[place].pop(0), strict=True):
                self.moment(name, tap).update(a, self.samples(b, tap))

        with watching(self.model_a, self.taps, keep):
            self.model_a(x)
        with watching(self.model_b, self.taps, receive):
            self.model_b(to_device_of(self.model_b, x))
        self.seen += 1

    def samples(self, value: Tensor, tap: Tap) -> Tensor:
        """What counts of a value at a tap."""
        every = thinning(value, tap, self.cost)
        return samples(value, tap, every, self.seen % every)

    def probe(self, x: Tensor) -> None:
        """Learn from a few inputs which values are overwritten or repeated, and their memory."""
        passed: list[tuple[Place, Tensor, int, list[Tensor]]] = []

        def receive(place: Place, value: Tensor) -> None:
            read = [self.samples(value, tap) for _, tap in self.taps[place]]
            passed.append((place, value, value._version, read))

        with watching(self.model_a, self.taps, receive):
            self.model_a(x)
        self.changing = {place for place, value, version, _ in passed if value._version != version}
        self.drop_repeated([(place, (id(value), version)) for place, value, version, _ in passed])
        storages = [sample.untyped_storage() for *_, read in passed for sample in read]
        kept = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
        networks = [*self.model_a.parameters(), *self.model_b.parameters()]
        room = max(sum(p.nbytes for p in networks) // 2, _ROOM[x.is_cuda])
        self.at_once = max(1, room * len(x) // max(1, kept))

    def drop_repeated(self, passed: list[tuple[Place, tuple[int, int]]]) -> None:
        """Observe a tensor that several layers read, unchanged, only once."""
        calls = Counter(place for place, _ in passed)
        first: dict[tuple[int, int], Place] = {}
        for place, value in passed:
            if calls[place] > 1:
                continue
            earlier = first.setdefault(value, place)
            if earlier == place:
                continue
            known = self.taps[earlier]
            self.taps[place] = [
                (name, tap)
                for name, tap in self.taps[place]
                if not any(name == other and tap.sees_the_same_as(t) for other, t in known)
            ]
        self.taps = {place: taps for place, taps in self.taps.items() if taps}

    def moment(self, name: str, tap: Tap) -> Moments:
        """The moments of one group at one tap."""
        key = name, id(tap)
        if key not in self.of_tap:
            self.of_tap[key] = Moments(self.own)
            self.moments.setdefault(name, []).append(self.of_tap[key])
        return self.of_tap[key]
