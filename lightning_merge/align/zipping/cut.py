"""Where the shared part of two networks ends: a layer all of whose output passes on."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.align.matching.observe import with_state
from lightning_merge.errors import AlignmentError
from lightning_merge.modes import gradient_free
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.verify import cycled
from lightning_merge.watched_layers import output_given, watch_output

# Relative, in float32: the same units in another order give sums in another order.
_EQUAL = 1e-4


@dataclass(frozen=True)
class Cut:
    """Where the trunk ends.

    Attributes:
        name: The module whose output is the last that both share.
        group: The group of units that lies along it.
        axis: Along which axis of the output.
        before: The largest modules that are done by then.
        behind: The largest modules that have not begun.
    """

    name: str
    group: str
    axis: int
    before: tuple[str, ...]
    behind: tuple[str, ...]


class Reached(Exception):  # noqa: N818 - no error
    """Ends a forward pass where the trunk does."""


def find_cut(spec: PermutationSpec, model: nn.Module, until: str, example: Tensor) -> Cut:
    """The cut behind the module that `until` names, by its end where there is one such module.

    The example has two images or more. Refused is a module that gives no single tensor, along which
    no group lies, or beside which the network's output depends on more.
    """
    name = _named(model, until)
    with gradient_free(model):
        output = _run_until(model, name, example)
        group, axis = _group_along(spec, model, name, example, output)
        _check_passes(model, name, example, output)
        before, behind = _around(model, name, example)
    return Cut(name, group, axis, before, behind)


def _named(model: nn.Module, until: str) -> str:
    names = [name for name, _ in model.named_modules() if name]
    found = [n for n in names if n == until] or [n for n in names if n.endswith(f".{until}")]
    if len(found) != 1:
        what = f"{len(found)} modules end in" if found else "no module is called"
        raise AlignmentError(
            f"until: {what} {until!r} in {type(model).__name__}; it has {', '.join(names[:8])}, ..."
        )
    return found[0]


def _run_until(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """What a module gives."""

    def end(output: Any) -> None:
        raise Reached(output)

    output: Any = None
    try:
        with watch_output(model.get_submodule(name), end):
            model(x)
    except Reached as reached:
        output = reached.args[0]
    if not isinstance(output, Tensor):
        raise AlignmentError(f"until: {name!r} gives no single tensor; choose another module")
    return output


def _around(model: nn.Module, name: str, x: Tensor) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The largest modules that run before a module has ended only, and that do behind it only."""
    early: set[str] = set()
    late: set[str] = set()
    open_now: set[str] = set()
    ended: list[str] = []

    def begin(own: str, *_: Any) -> None:
        (late if ended else early).add(own)
        open_now.add(own)

    def end(own: str, *_: Any) -> None:
        open_now.discard(own)
        if own == name:
            ended.append(own)
            late.update(open_now)

    with ExitStack() as watches:
        for own, module in model.named_modules():
            watches.enter_context(module.register_forward_pre_hook(partial(begin, own)))
            watches.enter_context(module.register_forward_hook(partial(end, own)))
        model(x)
    if len(ended) != 1:
        raise AlignmentError(f"until: {name!r} runs {len(ended)} times; choose another module")
    before: list[str] = []
    behind: list[str] = []

    def divide(parent: str, module: nn.Module) -> None:
        for key, child in module.named_children():
            own = f"{parent}.{key}" if parent else key
            inside = {n for n in early | late if n.startswith(f"{own}.")}
            if own == name or own in early & late:
                # What is open at the cut holds it; what runs on both sides stays as it is.
                if f"{name}.".startswith(f"{own}.") and own != name:
                    divide(own, child)
            elif own not in early | late and inside:
                divide(own, child)
            elif own in early | late:
                (before if own in early else behind).append(own)

    divide("", model)
    return tuple(before), tuple(behind)


def _group_along(
    spec: PermutationSpec, model: nn.Module, name: str, x: Tensor, output: Tensor
) -> tuple[str, int]:
    """The group whose permutation is one of a module's output, and along which axis."""
    generator = torch.Generator().manual_seed(0)
    for group in spec.groups:
        axes = [k for k in range(1, output.ndim) if output.shape[k] == group.size]
        if not axes:
            continue
        order = cycled(group, generator)
        twin = with_state(model, spec.apply(model, {group.name: order}))
        moved = _run_until(twin, name, x)
        if _close(moved, output):
            continue
        for axis in axes:
            if _close(moved, output.index_select(axis, order.to(output.device))):
                return group.name, axis
    raise AlignmentError(
        f"until: no group of units lies along what {name!r} gives; choose a layer or block whose "
        "units the spec can move"
    )


def _check_passes(model: nn.Module, name: str, x: Tensor, output: Tensor) -> None:
    """Whether the network's output depends on nothing but a module's output."""
    found = output_given(model, model.get_submodule(name), output, x)
    if not _close(found, model(x)):
        raise AlignmentError(
            f"until: the network goes past {name!r} (a shortcut, for example); choose a block as a "
            "whole, or the layer that its branches meet in"
        )


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= _EQUAL * other.norm())
