"""Where hooks observe a network's units, and how what passes there is read."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.symmetry.unit_group import Group
from lightning_merge.watched_layers import watch_input, watch_output

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Port = tuple[str, bool]
"""A layer, and whether its output is watched or its input."""

# However costly its products, a map keeps so many positions of each example.
_FEWEST = 16


@dataclass(frozen=True)
class Site:
    """A port where a group's units can be observed.

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
    def port(self) -> Port:
        """What several groups' sites may share."""
        return self.module, self.output

    @cached_property
    def start(self) -> int | None:
        """The first position where they follow each other in order, else None."""
        flat = self.index.reshape(-1)
        first = int(flat[0])
        return first if torch.equal(flat, torch.arange(first, first + len(flat))) else None

    def parts(self) -> list["Site"]:
        """One site for each use that a tensor has for its units: queries and keys.

        Where units follow each other, what a unit has several of lies apart, and has a mean
        and a deviation of its own. Neighbouring positions, as after a flatten, are one use.
        """
        if self.index.shape[1] == 1 or len(self.index) < 2:
            return [self]
        if not bool((self.index[1] - self.index[0] == 1).all()):
            return [self]
        return [replace(self, index=column[:, None]) for column in self.index.T]

    def sees_the_same_as(self, other: "Site") -> bool:
        """Whether two sites on one tensor read the same units."""
        return self.dim == other.dim and torch.equal(self.index, other.index)


def find_sites(group: Group, model: nn.Module) -> list[Site]:
    """Where to observe a group: the inputs of the layers that read it, else its makers' outputs."""
    modules = dict(model.named_modules())
    readers: list[Site] = []
    makers: list[Site] = []
    for member in group.members:
        path, _, leaf = member.tensor.rpartition(".")
        module = modules.get(path)
        if leaf != "weight" or not isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            continue
        if not module.weight.numel():
            continue  # a head without classes reads nothing
        dim = -1 if isinstance(module, nn.Linear) else 1
        products = group.size**2 / module.weight.numel()
        grouped = isinstance(module, _CONVOLUTIONS) and module.groups > 1
        if member.axes == (1,) and not grouped:
            readers.append(Site(path, False, dim, member.index, products))
        elif grouped and member.axes in ((0, 2), (0,)):
            depthwise = module.groups == module.in_channels
            if member.axes == (0, 2) or depthwise:
                readers.append(Site(path, False, dim, member.index, products))
        elif member.axes in ((0,), (0, 1)):
            makers.append(Site(path, True, dim, member.index, products))
    return readers or makers


def samples(value: Tensor, site: Site, every: int = 1, first: int = 0) -> Tensor:
    """The observations at a site, `(N, size, P)`, at least float32 and mostly without a copy.

    `N` and `P` together count observations: examples and positions where units are a tensor's
    channels, one and examples where they lie along its last, contiguous dimension. Of each
    example's positions only every so-manyth counts, from the `first` on.
    """
    size, repeat = site.index.shape
    if every > 1:
        value = value.movedim(site.dim, -1).flatten(1, -2)[:, first::every]
        site = replace(site, dim=-1)
    if value.ndim > 2 and site.dim == 1 and value.stride(1) == 1:
        value = value.movedim(1, -1)
        dim = value.ndim - 1
    else:
        dim = site.dim % value.ndim
    if site.start is not None:
        value = value.narrow(dim, site.start, size * repeat)
    else:
        value = value.index_select(dim, site.index.reshape(-1).to(value.device))
    if value.dtype in (torch.float16, torch.bfloat16):
        value = value.float()
    if repeat > 1:
        return value.movedim(dim, -1).reshape(-1, size, repeat)
    if dim == value.ndim - 1:
        return value.reshape(-1, size).T[None]
    return value.movedim(dim, 1).flatten(2)


def thinning(value: Tensor, site: Site, cost: float) -> int:
    """Of how many positions one counts, that products cost no more than running `cost` layers."""
    positions = value[0].numel() // value.shape[site.dim]
    return max(1, min(math.ceil(site.products / cost), positions // _FEWEST))


@contextmanager
def watching(
    model: nn.Module, ports: Iterable[Port], receive: Callable[[Port, Tensor], None]
) -> Iterator[None]:
    """Calls `receive` with every tensor that passes a port, at the moment it does."""
    modules = dict(model.named_modules())

    def passed(port: Port, value: Any) -> None:
        receive(port, value[0] if isinstance(value, tuple) else value)

    with ExitStack() as watches:
        for layer, output in ports:
            watch = watch_output if output else watch_input
            watches.enter_context(watch(modules[layer], partial(passed, (layer, output))))
        yield
