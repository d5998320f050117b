"""Numerical proof of a derived spec: in float64, with everything randomised.

Default BatchNorm statistics, zero-initialised heads and equal biases would let wrong specs
pass, so no tensor keeps its value. The graph is run once and its values are kept; a
permuted group recomputes only what it changes, and stops where the values are as before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lightning_merge.modes import in_float64
from lightning_merge.progress import tracked
from lightning_merge.symmetry.index_maps import by_tensor, gather, to_sources
from lightning_merge.symmetry.replay import Replay, buffers_of, distance, prepare
from lightning_merge.symmetry.unit_group import Group
from lightning_merge.trace.deadline import Deadline
from lightning_merge.trace.exported import Exported

TOLERANCE = 1e-9
Draw = Callable[[Group, torch.Generator], Tensor]


def verify(
    exported: Exported, groups: list[Group], deadline: Deadline
) -> tuple[list[Group], list[str]]:
    """Keep the groups that leave the function unchanged, with a line for each that does not.

    Each group and all groups together, under random permutations, must leave the output unchanged
    to a relative 1e-9. That this check could fail is checked too: permuting some single member
    alone must change the output. One backward pass answers that for all groups, because where the
    output's derivative in the direction of a change is not zero the output does change along it.
    Where the derivative does vanish (a saturated softmax, units that are silent on the drawn
    inputs) the change itself is tried, on two draws, before the group is called deaf and frozen.
    """
    with in_float64():
        return _verify(exported, groups, torch.Generator().manual_seed(20240229), deadline)


def _verify(
    exported: Exported, groups: list[Group], generator: torch.Generator, deadline: Deadline
) -> tuple[list[Group], list[str]]:
    replay = prepare(exported, generator, deadline)
    with torch.no_grad():
        base = replay.result(replay.kept)
    state = replay.state

    def change(draw: Draw, some: list[Group]) -> float:
        return replay.error(_permuted(state, some, generator, draw))

    failed: list[str] = []
    passed = []
    with torch.no_grad():
        for group in tracked(groups, "Verifying permutations"):
            deadline.check("verifying the permutations")
            error = change(cycled, [group])
            if error <= TOLERANCE:
                passed.append(group)
            else:
                failed.append(
                    f"{group.name}: permuting it changes the output by {error:.1e}: frozen"
                )
        for draw in (cycled, Group.random):
            deadline.check("verifying the permutations")
            if _together(replay, state, passed, base, generator, draw) > TOLERANCE:
                passed, more = one_after_another(passed, partial(change, draw))
                failed += more
    deaf = _deaf(replay, state, passed, generator)
    if deaf:
        replay = prepare(exported, generator, deadline)
        state = replay.state
        deaf = _deaf(replay, state, deaf, generator)
    failed += [f"{g.name}: the output does not depend on it: frozen" for g in deaf]
    return [group for group in passed if group not in deaf], failed


def cycled(group: Group, generator: torch.Generator) -> Tensor:
    """A random permutation that moves every unit: one cycle in each block.

    A permutation drawn from all would often be the identity for groups of two or three, and
    the check vacuous.
    """
    width = group.size // group.blocks
    rows = []
    for block in range(group.blocks):
        order = torch.randperm(width, generator=generator)
        row = torch.empty_like(order)
        row[order] = order.roll(1)
        rows.append(row + block * width)
    return torch.cat(rows)


def _permuted(
    state: Mapping[str, Tensor],
    groups: Sequence[Group],
    generator: torch.Generator,
    draw: Draw,
) -> dict[str, Tensor]:
    """The tensors that random permutations of these groups change."""
    permutation = {group.name: draw(group, generator) for group in groups}
    moved = by_tensor(to_sources(groups, permutation))
    return {name: gather(state[name], moved[name]) for name in moved if name in state}


def _together(
    replay: Replay,
    state: Mapping[str, Tensor],
    groups: Sequence[Group],
    base: list[Tensor],
    generator: torch.Generator,
    draw: Draw,
) -> float:
    """The error of all groups at once, by a complete run."""
    given = dict(replay.given)
    for name, tensor in _permuted(state, groups, generator, draw).items():
        given.update(dict.fromkeys(replay.placeholders[name], tensor))
    return distance(base, replay.result(replay.full(given)))


def one_after_another(
    groups: Sequence[Group], error: Callable[[list[Group]], float]
) -> tuple[list[Group], list[str]]:
    """Groups that are right alone but wrong together: keep those that fit what is kept."""
    kept: list[Group] = []
    failed = []
    for group in groups:
        if error([*kept, group]) <= TOLERANCE:
            kept.append(group)
        else:
            failed.append(f"{group.name}: does not combine with the other groups: frozen")
    return kept, failed


def _deaf(
    replay: Replay,
    state: Mapping[str, Tensor],
    groups: Sequence[Group],
    generator: torch.Generator,
) -> list[Group]:
    """The groups of which no member alone would change the output."""
    # Running statistics have no derivative; what else moves with their units has.
    buffers = buffers_of(replay.exported)
    leaves = {
        name: tensor.detach().requires_grad_()
        for name, tensor in state.items()
        if tensor.is_floating_point() and name not in buffers
    }
    given = dict(replay.given)
    for name, leaf in leaves.items():
        given.update(dict.fromkeys(replay.placeholders[name], leaf))
    slopes: dict[str, Tensor | None] = {}
    # A custom operator, or a parameter in the place of a running statistic, may have no
    # derivative; then only running the network tells.
    with torch.enable_grad(), suppress(RuntimeError):
        outputs = replay.result(replay.full(given))
        weights = [
            torch.randn(tuple(x.shape), generator=generator, dtype=torch.float64).to(x.device)
            for x in outputs
        ]
        total = sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)  # type: ignore[arg-type]
        slopes = dict(zip(leaves, gradients, strict=True))
    deaf = [group for group in groups if not _heard(group, state, slopes, generator)]
    with torch.no_grad():
        return [group for group in deaf if not _changes(replay, group, state, generator)]


def _heard(
    group: Group,
    state: Mapping[str, Tensor],
    slopes: Mapping[str, Tensor | None],
    generator: torch.Generator,
) -> bool:
    """Whether permuting some single member would change the output to first order."""
    for name, after in _alone(group, state, generator):
        slope = slopes.get(name)
        if slope is not None:
            change = after - state[name]
            product = float((slope * change).sum().abs())
            if product > 1e-8 * float(slope.norm() * change.norm()) > 0:
                return True
    return False


def _changes(
    replay: Replay, group: Group, state: Mapping[str, Tensor], generator: torch.Generator
) -> bool:
    """Whether permuting some single member does change the output."""
    return any(
        replay.error({name: after}) > TOLERANCE for name, after in _alone(group, state, generator)
    )


def _alone(
    group: Group, state: Mapping[str, Tensor], generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """Each member's tensor with that member alone permuted."""
    permutation = cycled(group, generator)
    for member in group.members:
        # A fused projection holds q and k rows in one tensor: one of them alone must count.
        member = replace(member, index=member.index[:, :1])
        before = state[member.tensor]
        yield member.tensor, gather(before, [(member.place, group.sources(member, permutation))])
