"""What two networks' units do on the same data: their joint moments, in one pass."""

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.align.matching.activation_hooks import (
    Port,
    Site,
    find_sites,
    samples,
    thinning,
    watching,
)
from lightning_merge.align.matching.head_shared_units import carrier, sites_of
from lightning_merge.align.matching.moments import Moments
from lightning_merge.batches import inputs_in, to_device_of
from lightning_merge.distributed import Share
from lightning_merge.errors import AlignmentError
from lightning_merge.modes import gradient_free
from lightning_merge.progress import tracked
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.verify import cycled

# Enough examples to tell a batch from a single one.
_PROBE = 2
# From one order of units to another the norms of what passes may differ by so much; so many of a
# port's positions may differ by more (a few tokens that are parameters).
_ROUNDING, _MOVED = 1e-2, 0.5
# What values may take at least, in bytes, on a CPU and on a GPU, which needs larger batches.
_ROOM = (2**25, 2**30)


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
    """
    found = observe(spec, model_a, model_b, batches, progress, cost=cost)
    return {name: summed_correlation(name, moments) for name, moments in found.items()}


def summed_correlation(name: str, moments: Iterable[Moments]) -> Tensor:
    """The sum of a group's correlations over its sites, `(size, size)`; refused if not finite."""
    return checked_finite(name, torch.stack([moment.correlation() for moment in moments]).sum(0))


def checked_finite(name: str, total: Tensor) -> Tensor:
    """What was summed over a group's activations; an `AlignmentError` if it is not finite."""
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
    """For each group the joint moments of both networks' units, at each of its sites.

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
    with gradient_free(model_a, model_b):
        for inputs in inputs_in(tracked(batches, "Matching activations", progress)):
            observer.read(inputs)
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
        self.spec, self.own, self.cost = spec, own, cost
        self.model_a, self.model_b = model_a, model_b
        self.sites: dict[Port, list[tuple[str, Site]]] = {}
        found = {group.name: find_sites(group, model_a) for group in spec.groups}
        for group in spec.groups:
            if any(found[g.name] for g in group.inside(spec.groups)):
                continue  # wholes are matched by the units inside them
            for site in sites_of(found[group.name], carrier(spec.groups, group)):
                self.sites.setdefault(site.port, []).append((group.name, site))
        self.moments: dict[str, list[Moments]] = {}
        self.of_site: dict[tuple[str, int], Moments] = {}
        self.changing: set[Port] = set()
        self.at_once = 0
        self.seen = 0

    def read(self, x: Tensor) -> None:
        """Add one batch of inputs."""
        x = to_device_of(self.model_a, x.clone() if x.is_inference() else x)
        if not self.at_once:
            self.drop_disordered(x[:_PROBE])
            self.probe(x[:_PROBE])
        parts = math.ceil(len(x) / self.at_once)
        for part in x.split(math.ceil(len(x) / parts)):
            self.compare(part)

    def compare(self, x: Tensor) -> None:
        """Run both networks on inputs that are few enough."""
        values: dict[Port, list[list[Tensor]]] = {port: [] for port in self.sites}

        def keep(port: Port, a: Tensor) -> None:
            read = [self.samples(a, site) for _, site in self.sites[port]]
            values[port].append([s.clone() for s in read] if port in self.changing else read)

        def receive(port: Port, b: Tensor) -> None:
            for (name, site), a in zip(self.sites[port], values[port].pop(0), strict=True):
                self.moment(name, site).update(a, self.samples(b, site))

        with watching(self.model_a, self.sites, keep):
            self.model_a(x)
        with watching(self.model_b, self.sites, receive):
            self.model_b(to_device_of(self.model_b, x))
        self.seen += 1

    def samples(self, value: Tensor, site: Site) -> Tensor:
        """What counts of a value at a site."""
        every = thinning(value, site, self.cost)
        return samples(value, site, every, self.seen % every)

    def drop_disordered(self, x: Tensor) -> None:
        """Leave out ports at whose positions other units lie, in an order of b's own.

        Where a layer mixes tokens, channels are its positions. They are found by running a with
        its units in another order, which leaves the norm at every other position as it is.
        """
        generator = torch.Generator().manual_seed(0)
        order = {group.name: cycled(group, generator) for group in self.spec.groups}
        other = with_state(self.model_a, self.spec.apply(self.model_a, order))
        before, after = (self.norms(model, x) for model in (self.model_a, other))
        for port, passed in before.items():
            one, two = torch.cat(passed), torch.cat(after[port])
            moved = (one - two).abs() > _ROUNDING * one.amax()
            if moved.double().mean() > _MOVED:
                del self.sites[port]

    def norms(self, model: nn.Module, x: Tensor) -> dict[Port, list[Tensor]]:
        """The norms over all units of what passes each port, at every position."""
        found: dict[Port, list[Tensor]] = {}

        def receive(port: Port, value: Tensor) -> None:
            dim = self.sites[port][0][1].dim
            norm = torch.linalg.vector_norm(value.double(), dim=dim)
            found.setdefault(port, []).append(norm.reshape(-1))

        with watching(model, self.sites, receive):
            model(x)
        return found

    def probe(self, x: Tensor) -> None:
        """Find out by a few inputs which values are overwritten or repeated, and their memory."""
        passed: list[tuple[Port, Tensor, int, list[Tensor]]] = []

        def receive(port: Port, value: Tensor) -> None:
            read = [self.samples(value, site) for _, site in self.sites[port]]
            passed.append((port, value, value._version, read))

        with watching(self.model_a, self.sites, receive):
            self.model_a(x)
        self.changing = {port for port, value, version, _ in passed if value._version != version}
        self.drop_repeated([(port, (id(value), version)) for port, value, version, _ in passed])
        storages = [sample.untyped_storage() for *_, read in passed for sample in read]
        kept = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
        networks = [*self.model_a.parameters(), *self.model_b.parameters()]
        room = max(sum(p.nbytes for p in networks) // 2, _ROOM[x.is_cuda])
        self.at_once = max(1, room * len(x) // max(1, kept))

    def drop_repeated(self, passed: list[tuple[Port, tuple[int, int]]]) -> None:
        """Observe a tensor that several layers read, unchanged, only once."""
        calls = Counter(port for port, _ in passed)
        first: dict[tuple[int, int], Port] = {}
        for port, value in passed:
            if calls[port] > 1:
                continue
            earlier = first.setdefault(value, port)
            if earlier == port:
                continue
            known = self.sites[earlier]
            self.sites[port] = [
                (name, site)
                for name, site in self.sites[port]
                if not any(name == other and site.sees_the_same_as(t) for other, t in known)
            ]
        self.sites = {port: sites for port, sites in self.sites.items() if sites}

    def moment(self, name: str, site: Site) -> Moments:
        """The moments of one group at one site."""
        key = name, id(site)
        if key not in self.of_site:
            self.of_site[key] = Moments(self.own)
            self.moments.setdefault(name, []).append(self.of_site[key])
        return self.of_site[key]


def with_state(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network with other weights."""
    network = copy.deepcopy(model)
    # Not by `load_state_dict`: a module may leave tensors out of its files.
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if name in state:
            tensor.data = state[name]
    return network
