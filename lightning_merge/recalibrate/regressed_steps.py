"""What least squares goes through, in the order in which a network runs: layers and norms."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.linear_layers import exactly, is_plain
from lightning_merge.recalibrate.channels import channel_axis, layers_to_repair, same_outputs
from lightning_merge.recalibrate.looking import Place

_LIBRARIES = ("torch.", "timm.")


@dataclass(frozen=True)
class Step:
    """A layer that is fitted, or a BatchNorm whose statistics are taken anew.

    Attributes:
        name: Of the layer or the norm.
        rows: How many outputs a layer gives for an example, one for each position.
        norm: The BatchNorm that alone reads the layer, if there is one: both are fitted as one.
        before: Where the tensor is to which the network adds what the layer gives, if it does.
        after: Where that sum is.
        block: The module in which all of that is, where it can be run alone: once, on one tensor.
    """

    name: str
    rows: int = 1
    norm: str | None = None
    before: Place | None = None
    after: Place | None = None
    block: str | None = None

    def places(self) -> set[Place]:
        """What has to be looked at to fit it."""
        return {(self.name, "in"), *([self.before] if self.before else [])}


@dataclass
class _Seen:
    """What a few examples showed: tensors by place, in the order in which they came."""

    order: dict[Place, int] = field(default_factory=dict)
    values: dict[Place, Tensor] = field(default_factory=dict)
    readers: dict[int, list[str]] = field(default_factory=dict)
    makers: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    kept: list[Tensor] = field(default_factory=list)
    result: Any = None


def steps_of(model: nn.Module, x: Tensor) -> list[Step]:
    """What there is to fit in a network in eval mode, in the order in which it runs.

    Linear layers and 2-d convolutions that run once, with a weight of their own, and the BatchNorms
    that do not follow one of them.
    """
    names = layers_to_repair(model, x, None).names
    plain = {n for n in names if is_plain(model.get_submodule(n), (nn.Linear, nn.Conv2d))}
    seen = _look(model, x)
    found, claimed = [], set()
    for name in sorted(plain, key=lambda n: seen.order[n, "in"]):
        readers = seen.readers.get(seen.makers[name], [])
        alone = len(readers) == 1 and _reads_alone(model, x, seen, readers[0], name)
        norm = readers[0] if alone else None
        claimed |= {norm} if norm else set()
        before, after = _sum_with(model, seen, name, norm)
        units = len(model.get_parameter(f"{name}.weight"))
        rows = seen.values[name, "out"].numel() // (units * len(x))
        found.append(Step(name, rows, norm, before, after))
    for name, layer in model.named_modules():
        once = seen.calls.get(name) == 1 and name not in claimed
        if once and isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            found.append(Step(name))
    found.sort(key=lambda step: seen.order[step.name, "in"])
    blocks = {_common(step.name, step.before[0]) for step in found if step.before}
    blocks = {name for name in blocks if name in seen.alone and seen.calls[name] == 1}
    return [replace(step, block=_block_of(step, blocks)) for step in found]


def shares_of_sums(model: nn.Module, x: Tensor, steps: Sequence[Step]) -> dict[str, Tensor]:
    """By what each channel of a layer's output is multiplied before it is added up.

    `(C,)` by layer: of a network in eval mode, for those steps of another network whose sum is
    where it was there.
    """
    seen, found = _look(model, x), {}
    for step in steps:
        if step.before not in seen.values or step.after not in seen.values:
            continue
        output = _output(model, seen, step.name, step.norm)
        axis = channel_axis(model.get_submodule(step.name))
        factors = _factors(seen.values[step.before], seen.values[step.after], output, axis)
        if factors is not None:
            found[step.name] = factors
    return found


def affine(norm: _BatchNorm, value: Tensor) -> Tensor:
    """What a BatchNorm's statistics, weight and bias make of its input, `(B, C, ...)`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    shape = (1, -1, *[1] * (value.ndim - 2))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    return value * scale.view(shape) + shift.view(shape)


def _look(model: nn.Module, x: Tensor) -> _Seen:
    seen = _Seen()

    def note(place: Place, value: Any) -> None:
        if not isinstance(value, Tensor):
            return
        seen.order.setdefault(place, len(seen.order))
        # It may be changed in place later.
        seen.values.setdefault(place, value.clone())
        seen.kept.append(value)

    def before(name: str, module: nn.Module, given: Any, further: Any) -> None:
        seen.calls[name] = seen.calls.get(name, 0) + 1
        value = next(iter((*given, *further.values())), None)
        if len(given) == 1 and not further and isinstance(value, Tensor):
            seen.alone.add(name)
        if _is_whole(module):
            note((name, "in"), value)
            seen.readers.setdefault(id(value), []).append(name)

    def after(name: str, module: nn.Module, given: Any, output: Any) -> None:
        del given
        if _is_whole(module):
            note((name, "out"), output)
            seen.makers[name] = id(output)

    with ExitStack() as watches, torch.no_grad():
        for name, module in model.named_modules():
            hook = partial(before, name)
            watches.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
            watches.enter_context(module.register_forward_hook(partial(after, name)))
        seen.result = model(x)
    return seen


def _is_whole(layer: nn.Module) -> bool:
    """Whether a module is looked at as one: it holds no others, or only its activation."""
    one = isinstance(layer, nn.Linear | nn.Conv2d | _BatchNorm)
    return one or not any(True for _ in layer.children())


def _common(one: str, other: str) -> str:
    """The name of the innermost module that holds both."""
    parts = zip(one.split(".")[:-1], other.split(".")[:-1], strict=False)
    return ".".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], parts))


def _block_of(step: Step, blocks: set[str]) -> str | None:
    held = [
        name for name in blocks if all(place.startswith(f"{name}.") for place, _ in step.places())
    ]
    return max(held, key=len, default=None)


def _is_foldable(layer: nn.Module) -> bool:
    return (
        isinstance(layer, _BatchNorm)
        and type(layer).__module__.startswith(_LIBRARIES)
        and layer.affine
        and layer.running_mean is not None
    )


def _reads_alone(model: nn.Module, x: Tensor, seen: _Seen, reader: str, name: str) -> bool:
    """Whether a BatchNorm reads what a layer gives, as it is, and nothing else does."""
    norm = model.get_submodule(reader)
    given, read = seen.values[name, "out"], seen.values[reader, "in"]
    # In-place operations between the two keep the tensor and change its values.
    if not _is_foldable(norm) or seen.calls[reader] > 1 or not torch.equal(given, read):
        return False
    with ExitStack() as watches, torch.no_grad():
        for other, value in ((name, -2 * given), (reader, seen.values[reader, "out"].clone())):
            hook = partial(_instead, value)
            watches.enter_context(model.get_submodule(other).register_forward_hook(hook))
        return same_outputs(model(x), seen.result)


def _instead(value: Tensor, *_: Any) -> Tensor:
    return value


def _output(model: nn.Module, seen: _Seen, name: str, norm: str | None) -> Tensor:
    value = seen.values[name, "out"]
    if norm is None:
        return value
    layer = model.get_submodule(norm)
    assert isinstance(layer, _BatchNorm)
    return affine(layer, value)


def _sum_with(
    model: nn.Module, seen: _Seen, name: str, norm: str | None
) -> tuple[Place | None, Place | None]:
    """Where what a layer gives is added up: to which earlier tensor, and where the sum is read."""
    output = _output(model, seen, name, norm)
    start, end = seen.order[name, "in"], seen.order[name, "out"]
    like = {
        place: at for place, at in seen.order.items() if seen.values[place].shape == output.shape
    }
    axis = channel_axis(model.get_submodule(name))
    earlier = [place for place, at in like.items() if at < start]
    later = [place for place, at in like.items() if at > end and place[1] == "in"]
    if not earlier or not later:
        return None, None
    sums, terms = (
        torch.stack([_few(seen.values[place], axis) for place in places])
        for places in (later, reversed(earlier))
    )
    added, given = sums[:, None] - terms[None], _few(output, axis)
    # Two positions of a channel are multiplied by one number, which tells most pairs apart.
    crossed = added[..., 0] * given[:, 1] - added[..., 1] * given[:, 0]
    scale = (added.abs().amax(dim=-1) * given.abs().amax(dim=-1)).clamp_min(1e-30)
    likely = (crossed.abs() <= 1e-2 * scale).all(dim=-1)
    for number, other in likely.nonzero().tolist():
        before, after = earlier[-1 - other], later[number]
        if _factors(seen.values[before], seen.values[after], output, axis) is not None:
            return before, after
    return None, None


def _few(value: Tensor, axis: int) -> Tensor:
    """A few channels at two positions, `(C, 2)`."""
    return exactly(value.movedim(axis, 0).flatten(1)[:8, [0, -1]])


def _factors(before: Tensor, after: Tensor, output: Tensor, axis: int) -> Tensor | None:
    """The `c` of `after = before + c * output`, by channel; None if it is no such sum."""
    added, given = exactly(after - before), exactly(output)
    added, given = (value.movedim(axis, 0).flatten(1) for value in (added, given))
    if given.shape[1] < 2:
        # Any single value is a multiple of any other.
        return None
    square = given.square().sum(dim=1)
    factors = (added * given).sum(dim=1) / square.clamp_min(1e-300)
    rest = (added - factors[:, None] * given).square().sum()
    exact = rest <= 1e-6 * added.square().sum() and bool((square > 0).all())
    # A share next to nothing cannot be divided by.
    usable = factors.abs().min() > 1e-3 * factors.abs().max()
    return factors if exact and bool(usable) else None
