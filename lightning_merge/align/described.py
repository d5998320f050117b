"""Groups from a user's own description, checked on the network as it runs.

Nothing is exported here, so that a network which `torch.export` cannot follow has a spec too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.align.group import Group, Member, gather, to_sources
from lightning_merge.align.taps import evaluation
from lightning_merge.align.trace import describe
from lightning_merge.errors import AlignmentError
from lightning_merge.progress import tracked

Entry = tuple[str, int] | tuple[str, int, int] | tuple[str, int, int, int]

TOLERANCE = 1e-9


def groups_from(
    description: Mapping[str, Sequence[Entry]], state_dict: Mapping[str, Tensor]
) -> list[Group]:
    """Groups of a network, as a user lists them.

    Args:
        description: By group name, `(tensor, axis, offset=0, repeat=1)` for every axis along
            which the units lie: one after another from `offset` on, each with `repeat`
            neighbouring positions (49 for a channel that was flattened with 7 x 7 pixels).
            The first entry says how many units there are: as many as fit its axis.
        state_dict: The network's.

    Raises:
        AlignmentError: There is no such tensor or axis, the units do not fit it, or a
            position is listed twice.
    """
    owner: dict[tuple[str, int, int], str] = {}
    groups = []
    for name, entries in description.items():
        members: list[Member] = []
        for entry in entries:
            size = len(members[0].index) if members else None
            member = _member(name, entry, state_dict, size)
            for position in member.index.ravel().tolist():
                other = owner.setdefault((member.tensor, member.axis, position), name)
                if other != name or position in _positions(members, member):
                    raise AlignmentError(
                        f"position {position} of {member.tensor!r} axis {member.axis} is listed "
                        f"twice, in groups {other!r} and {name!r}: leave one out"
                    )
            members.append(member)
        if not members:
            raise AlignmentError(f"group {name!r} lists nothing: give (tensor, axis) pairs")
        groups.append(Group(name, len(members[0].index), tuple(members)))
    return groups


def _positions(members: Sequence[Member], like: Member) -> set[int]:
    """The positions that these members have along one's axis."""
    return {p for m in members if m.place == like.place for p in m.index.ravel().tolist()}


def _member(name: str, entry: Entry, state_dict: Mapping[str, Tensor], size: int | None) -> Member:
    tensor, axis = entry[0], entry[1]
    offset = entry[2] if len(entry) > 2 else 0
    repeat = entry[3] if len(entry) > 3 else 1
    if tensor not in state_dict:
        raise AlignmentError(f"group {name!r}: the network has no tensor {tensor!r}")
    shape = tuple(state_dict[tensor].shape)
    if not 0 <= axis < len(shape):
        raise AlignmentError(f"group {name!r}: {tensor!r} has no axis {axis}, its shape is {shape}")
    room = shape[axis] - offset
    units = room // max(repeat, 1) if size is None else size
    # Without an offset or a repeat, an entry speaks of the whole axis.
    if units * repeat > room or (len(entry) == 2 and units != room) or min(offset, repeat - 1) < 0:
        raise AlignmentError(
            f"group {name!r}: {units} units do not fit the {shape[axis]} positions of {tensor!r} "
            f"axis {axis}: give (tensor, axis, offset, repeat)"
        )
    index = offset + torch.arange(units * repeat).reshape(units, repeat)
    return Member(tensor, (axis,), index, shape)


def refute(
    groups: Sequence[Group], model: nn.Module, inputs: Sequence[Tensor]
) -> tuple[list[Group], list[str]]:
    """Keep the groups that leave the function of a network unchanged, as far as it was tried.

    In float64, with every tensor and input moved away from its value by noise (default
    BatchNorm statistics, zero heads and blank images would let wrong groups pass): each
    group, and all together, must leave the output unchanged to a relative 1e-9 under a
    random permutation, and a part of it alone must not. The network is left as it was.

    Args:
        groups: What is to be tried.
        model: The network; it is run, and not exported.
        inputs: Its arguments.

    Returns:
        The groups that passed, and a line for each that did not.

    Raises:
        AlignmentError: The network does not run in float64, or its output is random or not
            finite.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with evaluation(model), torch.random.fork_rng(devices=[]):
            return _refute(groups, _Network(model, inputs), torch.Generator().manual_seed(2))
    finally:
        torch.set_default_dtype(before)


def _refute(
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
    kept: list[Group] = []
    for group in passed:
        if network.change([*kept, group], generator) <= TOLERANCE:
            kept.append(group)
        else:
            failed.append(f"{group.name}: does not combine with the other groups: frozen")
    return kept, failed


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
            result = torch.func.functional_call(self.model, state, self.inputs)
        except (RuntimeError, TypeError, ValueError) as error:
            raise AlignmentError(
                f"{type(self.model).__name__} does not run in float64: {describe(error)}"
            ) from error
        return [x for x in _tensors(result) if x.is_floating_point()]

    def change(self, groups: Sequence[Group], generator: torch.Generator) -> float:
        """How much a random permutation of these groups changes the output, relatively."""
        permutation = {group.name: _derangement(group, generator) for group in groups}
        by_tensor: dict[str, list[Any]] = {}
        for place, source in to_sources(groups, permutation).items():
            by_tensor.setdefault(place[0], []).append((place, source))
        # A tensor with several names is the network's under the first, and moves once.
        changed = {
            self.first[name]: gather(self.state[self.first[name]], sources)
            for name, sources in by_tensor.items()
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
    if not tensor.is_floating_point():
        return tensor
    value = tensor.double()
    size = value.square().mean().sqrt().clamp_min(0.1) if value.numel() else 1.0
    noise = torch.randn(value.shape, generator=generator).to(value)
    return value + 0.5 * size * (noise.abs() if buffer else noise)


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
