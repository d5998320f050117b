"""Taps: where a network's units can be observed, and how what passes there is read."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.align.group import Group

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Place = tuple[str, bool]

# However costly its products, a map keeps so many positions of each example.
_FEWEST = 16


@dataclass(frozen=True)
class Tap:
    """A place where a group's units can be observed.

    Attributes:
        module: The layer that is watched.
        output: Whether its output is watched, or its input.
        dim: The dimension along which the units lie.
        index: The units' positions along it, `(size, repeat)`.
        products: The products of pairs of units for one observation, as a multiple of the
            layer's own multiplications at one position.
    """

    module: str
    output: bool
    dim: int
    index: Tensor = field(repr=False)
    products: float = 0.0

    @property
    def place(self) -> Place:
        """What several groups' taps may share."""
        return self.module, self.output

    @cached_property
    def start(self) -> int | None:
        """The first position where they follow each other in order, else None."""
        flat = self.index.reshape(-1)
        first = int(flat[0])
        return first if torch.equal(flat, torch.arange(first, first + len(flat))) else None

    def roles(self) -> list["Tap"]:
        """One tap for each role that units play in one tensor: queries and keys.

        Where units follow each other, what a unit has several of lies apart, and has a mean
        and a deviation of its own. Neighbouring positions, as after a flatten, are one role.
        """
        if self.index.shape[1] == 1 or len(self.index) < 2:
            return [self]
        if not bool((self.index[1] - self.index[0] == 1).all()):
            return [self]
        return [replace(self, index=column[:, None]) for column in self.index.T]

    def sees_the_same_as(self, other: "Tap") -> bool:
        """Whether two taps on one tensor read the same units."""
        return self.dim == other.dim and torch.equal(self.index, other.index)


def find_taps(group: Group, model: nn.Module) -> list[Tap]:
    """Where to observe a group: the inputs of the layers that read it, else its makers' outputs."""
    modules = dict(model.named_modules())
    readers: list[Tap] = []
    makers: list[Tap] = []
    for member in group.members:
        path, _, leaf = member.tensor.rpartition(".")
        module = modules.get(path)
        if leaf != "weight" or not isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            continue
        dim = -1 if isinstance(module, nn.Linear) else 1
        products = group.size**2 / module.weight.numel()
        grouped = isinstance(module, _CONVOLUTIONS) and module.groups > 1
        if member.axes == (1,) and not grouped:
            readers.append(Tap(path, False, dim, member.index, products))
        elif grouped and member.axes in ((0, 2), (0,)):
            depthwise = module.groups == module.in_channels
            if member.axes == (0, 2) or depthwise:
                readers.append(Tap(path, False, dim, member.index, products))
        elif member.axes in ((0,), (0, 1)):
            makers.append(Tap(path, True, dim, member.index, products))
    return readers or makers


def samples(value: Tensor, tap: Tap, every: int = 1, first: int = 0) -> Tensor:
    """The observations at a tap, `(N, size, P)`, at least float32 and mostly without a copy.

    `N` and `P` together count observations: examples and positions where units are a
    tensor's channels, one and examples where they lie along its last, contiguous dimension.

    Args:
        value: What passes the tap.
        tap: The tap.
        every: Only every so-manyth of each example's positions (pixels, tokens) counts.
        first: The first one that does.
    """
    size, repeat = tap.index.shape
    if every > 1:
        value = value.movedim(tap.dim, -1).flatten(1, -2)[:, first::every]
        tap = replace(tap, dim=-1)
    if value.ndim > 2 and tap.dim == 1 and value.stride(1) == 1:
        value = value.movedim(1, -1)
        dim = value.ndim - 1
    else:
        dim = tap.dim % value.ndim
    if tap.start is not None:
        value = value.narrow(dim, tap.start, size * repeat)
    else:
        value = value.index_select(dim, tap.index.reshape(-1).to(value.device))
    if value.dtype in (torch.float16, torch.bfloat16):
        value = value.float()
    if repeat > 1:
        return value.movedim(dim, -1).reshape(-1, size, repeat)
    if dim == value.ndim - 1:
        return value.reshape(-1, size).T[None]
    return value.movedim(dim, 1).flatten(2)


def thinning(value: Tensor, tap: Tap, cost: float) -> int:
    """Of how many positions one is to count, that products cost no more than `cost` layers.

    Args:
        value: What passes the tap.
        tap: The tap.
        cost: What the products may cost, as a multiple of running the layer.
    """
    positions = value[0].numel() // value.shape[tap.dim]
    return max(1, min(math.ceil(tap.products / cost), positions // _FEWEST))


@contextmanager
def watching(
    model: nn.Module, places: Iterable[Place], receive: Callable[[Place, Tensor], None]
) -> Iterator[None]:
    """Calls `receive` with every tensor that passes a place, at the moment it does."""
    modules = dict(model.named_modules())
    handles = []
    for place in places:
        path, output = place

        def hook(_module: nn.Module, *values: Any, place: Place = place) -> None:
            value = values[-1]
            receive(place, value[0] if isinstance(value, tuple) else value)

        layer = modules[path]
        handles.append(
            layer.register_forward_hook(hook) if output else layer.register_forward_pre_hook(hook)
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluation(*models: nn.Module) -> Iterator[None]:
    """The models in eval mode and without gradients, and every module's own mode afterwards.

    Inference mode is left, because only ordinary tensors tell whether they were changed.
    """
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
