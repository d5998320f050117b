"""Groups: one permutation, and everything in a state dict that it moves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_merge.errors import AlignmentError

Permutation = dict[str, Tensor]
Place = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Member:
    """Where the units of a group lie in one tensor.

    Attributes:
        tensor: Name in the state dict.
        axes: The axes over which the units lie; nearly always one.
        index: Positions of each unit along that axis (flat, row-major, over several axes),
            `(size, repeat)`. A unit that was flattened with 7 x 7 pixels has 49 positions, a
            head all positions of its rows.
        shape: The shape under which the axes are counted. It differs from the tensor's own
            only in grouped convolutions, whose axis 0 is seen as `(groups, outputs)`.
    """

    tensor: str
    axes: tuple[int, ...]
    index: Tensor = field(repr=False)
    shape: tuple[int, ...]

    @property
    def axis(self) -> int:
        """The first (and mostly only) axis."""
        return self.axes[0]

    @property
    def repeat(self) -> int:
        """How many positions each unit has."""
        return self.index.shape[1]

    @property
    def offset(self) -> int:
        """The first position."""
        return int(self.index.min())

    @property
    def place(self) -> Place:
        """What tells apart the index spaces of a state dict."""
        return self.tensor, self.shape, self.axes

    @property
    def length(self) -> int:
        """The number of positions along the member's axes."""
        return int(torch.tensor([self.shape[a] for a in self.axes]).prod())


@dataclass(frozen=True, eq=False)
class Group:
    """Units that one permutation moves.

    Attributes:
        name: From the layer that creates the units.
        size: Number of units.
        members: All that moves with them.
        blocks: Units `0 .. size/blocks - 1` form the first block, and so on; a permutation
            stays inside blocks. More than one for the units inside attention heads.
        level: Groups of level 0 are moved last. A group of heads as wholes has level 1 and
            is moved before the units inside the heads.
        parent: The group that moves this group's blocks as wholes, if there is one.
    """

    name: str
    size: int
    members: tuple[Member, ...] = field(repr=False)
    blocks: int = 1
    level: int = 0
    parent: str | None = None

    def identity(self) -> Tensor:
        """The permutation that changes nothing, `(size,)`."""
        return torch.arange(self.size)

    def random(self, generator: torch.Generator | None = None) -> Tensor:
        """A random permutation that stays inside blocks, `(size,)`."""
        width = self.size // self.blocks
        rows = [torch.randperm(width, generator=generator) for _ in range(self.blocks)]
        return torch.cat([row + block * width for block, row in enumerate(rows)])

    def check(self, permutation: Tensor) -> Tensor:
        """The permutation on the CPU as int64.

        Raises:
            AlignmentError: It is none, or leaves its blocks.
        """
        if not isinstance(permutation, Tensor) or permutation.is_floating_point():
            raise AlignmentError(f"group {self.name!r}: a permutation is a LongTensor")
        p = permutation.detach().to("cpu", torch.int64)
        if p.shape != (self.size,):
            raise AlignmentError(
                f"group {self.name!r} has {self.size} units, its permutation has shape "
                f"{tuple(p.shape)}"
            )
        if not torch.equal(p.sort().values, self.identity()):
            raise AlignmentError(f"group {self.name!r}: not a permutation of 0..{self.size - 1}")
        width = self.size // self.blocks
        if not torch.equal(p // width, self.identity() // width):
            raise AlignmentError(
                f"group {self.name!r}: units may be permuted inside their blocks of {width} only"
            )
        return p

    def sources(self, member: Member, permutation: Tensor) -> Tensor:
        """From where each position along a member's axes is taken, `(member.length,)`."""
        source = torch.arange(member.length)
        source[member.index.reshape(-1)] = member.index[permutation].reshape(-1)
        return source


def outermost_first(groups: Iterable[Group]) -> list[Group]:
    """The order in which groups are applied."""
    return sorted(groups, key=lambda group: -group.level)


def to_sources(groups: Iterable[Group], permutation: Mapping[str, Tensor]) -> dict[Place, Tensor]:
    """From where each position is taken when all groups are applied, by place."""
    sources: dict[Place, Tensor] = {}
    for group in outermost_first(groups):
        given = permutation.get(group.name)
        if given is None:
            continue
        checked = group.check(given)
        if torch.equal(checked, group.identity()):
            continue
        for member in group.members:
            source = group.sources(member, checked)
            before = sources.get(member.place)
            sources[member.place] = source if before is None else before[source]
    return sources


def from_sources(groups: Iterable[Group], sources: Mapping[Place, Tensor]) -> Permutation:
    """The inverse of `to_sources`, peeling off the outermost groups first."""
    rest = dict(sources)
    permutation: Permutation = {}
    for group in outermost_first(groups):
        member = group.members[0]
        source = rest.get(member.place)
        if source is None:
            permutation[group.name] = group.identity()
            continue
        row_of = torch.full((member.length,), -1)
        row_of[member.index] = torch.arange(group.size)[:, None]
        p = row_of[source[member.index[:, 0]]]
        permutation[group.name] = p
        inverse = torch.argsort(p)
        for member in group.members:
            if member.place in rest:
                rest[member.place] = group.sources(member, inverse)[rest[member.place]]
    return permutation


def gather(tensor: Tensor, sources: list[tuple[Place, Tensor]]) -> Tensor:
    """A new tensor with the entries of each place taken from their sources."""
    taken: set[int] = set()
    simple = True
    for (_, shape, axes), _ in sources:
        simple &= len(axes) == 1 and shape == tuple(tensor.shape) and not taken & set(axes)
        taken |= set(axes)
    if simple:
        for (_, _, axes), source in sources:
            tensor = tensor.index_select(axes[0], source.to(tensor.device))
        return tensor
    shape = sources[0][0][1]
    rank = len(shape)
    coordinates = [
        torch.arange(size).reshape([-1 if d == axis else 1 for d in range(rank)])
        for axis, size in enumerate(shape)
    ]
    for (_, _, axes), source in sources:
        sizes = [shape[a] for a in axes]
        spread = [shape[d] if d in axes else 1 for d in range(rank)]
        for axis, coordinate in zip(axes, torch.unravel_index(source, sizes), strict=True):
            # An axis that two places share (the groups of a convolution) moves alike in both.
            if coordinates[axis].numel() == shape[axis] or len(axes) > 1:
                coordinates[axis] = coordinate.reshape(spread)
    index = tuple(c.to(tensor.device) for c in coordinates)
    return tensor.reshape(shape)[index].reshape(tensor.shape)
