"""Groups of units: what one permutation moves in a state dict."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_merge.errors import AlignmentError
from lightning_merge.trace.units import Role

Symmetry = Literal["permutation", "scaled", "orthogonal", "invertible"]
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
        role: What the tensor does with the units. `makes`: they come out of it as new sums (the
            output axis of a linear layer or convolution, and its bias; the columns of an
            embedding). `reads`: it sums over them (the input axis). `scales`: it meets each
            unit on its own (scale, shift and running statistics of a norm, LayerScale,
            depthwise kernels with their bias, position embeddings). Where it is not given,
            `makes` for the first axis of several, `reads` for the others, and `scales` for a
            vector.
        variance: How a linear map `T` of the units acts on this tensor: 1 by `T` (it makes
            them), -1 by the inverse transpose of `T` (it reads them, or it makes keys that are
            multiplied with them), 0 not at all. Permutations move it in any case.
    """

    tensor: str
    axes: tuple[int, ...]
    index: Tensor = field(repr=False)
    shape: tuple[int, ...]
    role: Role = ""  # type: ignore[assignment]
    variance: int = 0

    def __post_init__(self) -> None:
        if not self.role:
            first: Role = "makes" if self.axes[0] == 0 else "reads"
            object.__setattr__(self, "role", first if len(self.shape) > 1 else "scales")

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

    @property
    def unit_at(self) -> Tensor:
        """The unit at each position, `(length,)`; -1 where there is none."""
        found = torch.full((self.length,), -1)
        found[self.index] = torch.arange(len(self.index))[:, None]
        return found

    def apart_from(self, taken: Iterable[Tensor]) -> Tensor:
        """The index without the columns of positions that others have taken."""
        free = torch.ones(self.length, dtype=torch.bool)
        for index in taken:
            free[index.reshape(-1)] = False
        return self.index[:, free[self.index[0]]]


def in_order(index: Tensor, length: int) -> bool:
    """Whether the units `(size, repeat)` have one position each: all `length` of them, in order."""
    return index.shape == (length, 1) and torch.equal(index[:, 0], torch.arange(length))


def other_positions(index: Tensor, size: int) -> Tensor:
    """Which of so many positions are not in an index."""
    rest = torch.ones(size, dtype=torch.bool)
    rest[index] = False
    return rest.nonzero()[:, 0]


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
        symmetry: What may be done to the units without changing the network's function:
            `permutation`; `scaled`: also positive factors; `orthogonal`: orthogonal matrices, on
            a state that `spec.canonical` gave; `invertible`: any invertible matrix, in each block.
        keeps_ones: Whether an orthogonal matrix has to keep the all-ones vector, as one has to
            that passes a LayerNorm.
    """

    name: str
    size: int
    members: tuple[Member, ...] = field(repr=False)
    blocks: int = 1
    level: int = 0
    parent: str | None = None
    symmetry: Symmetry = "permutation"
    keeps_ones: bool = False

    def inside(self, groups: Iterable["Group"]) -> list["Group"]:
        """The groups whose blocks are this group's units: those inside heads."""
        return [g for g in groups if g.parent == self.name and g.blocks == self.size]

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
