"""Numerical check of groups on the network as it runs.

Nothing is exported here, so that a network which `torch.export` cannot follow has a spec too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.errors import AlignmentError
from lightning_merge.modes import clear_caches, gradient_free, in_float64
from lightning_merge.progress import tracked
from lightning_merge.symmetry.index_maps import by_tensor, gather, to_sources
from lightning_merge.symmetry.unit_group import Group
from lightning_merge.symmetry.verify import TOLERANCE, one_after_another
from lightning_merge.trace.exported import describe


def verify_eager(
    groups: Sequence[Group], model: nn.Module, inputs: Sequence[Tensor]
) -> tuple[list[Group], list[str]]:
    """Keep the groups that, as far as it was tried, leave a network's function unchanged.

    In float64, with every tensor and input moved away from its value by noise (default BatchNorm
    statistics, zero heads and blank images would let wrong groups pass): each group, and all
    together, must leave the output unchanged to a relative 1e-9 under a random permutation, and a
    part of it alone must not. The network is left as it was. Groups that fail have a line each.
    """
    with in_float64(), gradient_free(model), torch.random.fork_rng(devices=[]):
        return _verify_eager(groups, _Network(model, inputs), torch.Generator().manual_seed(2))


def _verify_eager(
    groups: Sequence[Group], network: "_Network", generator: torch.Generator
) -> tuple[list[Group], list[str]]:
    passed: list[Group] = []
    failed = []
    for group in tracked(groups, "Verifying permutations"):
        error = network.change([group], generator)
        if error > TOLERANCE:
            failed.append(f"{group.name}: permuting it changes the output by {error:.1e}: frozen")
        elif not any(network.change([part], generator) > TOLERANCE for part in _parts(group)):
            failed.append(f"{group.name}: the output does not depend on it: frozen")
        else:
            passed.append(group)
    if network.change(passed, generator) <= TOLERANCE:
        return passed, failed
    kept, more = one_after_another(passed, lambda some: network.change(some, generator))
    return kept, failed + more


def _parts(group: Group) -> list[Group]:
    """One position of each unit in one tensor alone, for all tensors."""
    return [replace(group, members=(replace(m, index=m.index[:, :1]),)) for m in group.members]


class _Network:
    """A network with other tensors than its own: float64, and none at its default."""

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        self.model = model
        generator = torch.Generator().manual_seed(1)
        self.inputs = tuple(_moved(x.detach(), False, generator) for x in inputs)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        buffers = dict(model.named_buffers(remove_duplicate=False))
        self.first: dict[str, str] = {}
        self.state: dict[str, Tensor] = {}
        names: dict[int, str] = {}
        for name, tensor in (parameters | buffers).items():
            self.first[name] = names.setdefault(id(tensor), name)
            if self.first[name] == name:
                self.state[name] = _moved(tensor.detach(), name in buffers, generator)
        self.base = self.run({})
        if not all(bool(torch.isfinite(x).all()) for x in self.base):
            raise AlignmentError(f"the output of {type(model).__name__} is not finite")
        if _distance(self.base, self.run({})) > 0:
            raise AlignmentError(
                f"{type(model).__name__} gives another output each time, even in eval mode: "
                "its permutations cannot be verified"
            )

    def run(self, changed: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs with some tensors exchanged."""
        try:
            state = {**self.state, **changed}
            clear_caches(self.model)
            result = torch.func.functional_call(self.model, state, self.inputs)
            clear_caches(self.model)
        except (RuntimeError, TypeError, ValueError) as error:
            raise AlignmentError(
                f"{type(self.model).__name__} does not run in float64: {describe(error)}"
            ) from error
        return [x for x in _tensors(result) if x.is_floating_point()]

    def change(self, groups: Sequence[Group], generator: torch.Generator) -> float:
        """How much a random permutation of these groups changes the output, relatively."""
        permutation = {group.name: _derangement(group, generator) for group in groups}
        # A tensor with several names is the network's under the first, and moves once.
        changed = {
            self.first[name]: gather(self.state[self.first[name]], sources)
            for name, sources in by_tensor(to_sources(groups, permutation)).items()
        }
        return _distance(self.base, self.run(changed))


def _derangement(group: Group, generator: torch.Generator) -> Tensor:
    """A random permutation that is not the identity where there is another one."""
    permutation = group.random(generator)
    if torch.equal(permutation, group.identity()):
        return permutation.reshape(group.blocks, -1).flip(1).reshape(-1)
    return permutation


def _moved(tensor: Tensor, buffer: bool, generator: torch.Generator) -> Tensor:
    """A tensor plus half its own size of noise; buffers grow, as variances must stay positive."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return tensor
    value = tensor.to(torch.complex128) if tensor.is_complex() else tensor.double()
    size = value.abs().square().mean().sqrt().clamp_min(0.1) if value.numel() else 1.0
    noise = torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value)
    grows = buffer and not value.is_complex()
    return value + 0.5 * size * (noise.abs() if grows else noise)


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in a nest of outputs."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [x for item in value.values() for x in _tensors(item)]
    return [x for item in value for x in _tensors(item)] if isinstance(value, list | tuple) else []


def _distance(old: Sequence[Tensor], new: Sequence[Tensor]) -> float:
    """The largest relative change of any output."""
    errors = [
        float((a - b).norm() / a.norm().clamp_min(1e-300)) for a, b in zip(old, new, strict=True)
    ]
    return max(errors, default=0.0)
