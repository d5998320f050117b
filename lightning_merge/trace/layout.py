"""Layouts: which units lie along which part of a tensor's dimensions.

A dimension is a row-major product of *atoms*: after `reshape` a dimension of 192 may be
3 heads of 64. A *label* spreads an array of units over one or several atoms, of one or of
several dimensions. An atom without a label is either *uniform* (all its entries are equal,
as after `expand`: no permutation can touch it) or fixed in place (pixels, tokens).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightning_merge.trace.units import Ids


@dataclass(frozen=True, eq=False)
class Atom:
    """An indivisible part of a dimension; two atoms are the same only if they are one object.

    Attributes:
        size: The number of entries.
        uniform: Whether all entries are equal.
        because: Why units that once lay here were given up; empty for true positions.
    """

    size: int
    uniform: bool = False
    because: str = ""


@dataclass(frozen=True, eq=False)
class Label:
    """Units over atoms: `ids` has one axis for each atom."""

    atoms: tuple[Atom, ...]
    ids: Ids


@dataclass(frozen=True, eq=False)
class Layout:
    """The atoms of each dimension of a tensor, and the labels over them.

    Attributes:
        dims: The atoms of each dimension.
        labels: The units over them.
        is_data: Whether the tensor depends on the network's inputs; one that does not is a
            weight, or made of weights and constants. Set between operators, not inside rules.
    """

    dims: tuple[tuple[Atom, ...], ...]
    labels: tuple[Label, ...] = ()
    is_data: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(size_of(atoms) for atoms in self.dims)

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """All atoms in row-major order."""
        return tuple(atom for dim in self.dims for atom in dim)

    def labelled(self) -> set[Atom]:
        """The atoms along which units lie."""
        return {atom for label in self.labels for atom in label.atoms}

    def fixed(self) -> tuple[Atom, ...]:
        """The atoms whose positions mean something that is no unit."""
        labelled = self.labelled()
        return tuple(a for a in self.atoms if not a.uniform and a not in labelled)

    def substitute(self, old: Atom, new: Sequence[Atom]) -> "Layout":
        """Split one atom into several whose sizes multiply to its own."""
        parts = tuple(new)
        dims = tuple(
            tuple(p for atom in dim for p in (parts if atom is old else (atom,)))
            for dim in self.dims
        )
        labels = []
        for label in self.labels:
            if old in label.atoms:
                at = label.atoms.index(old)
                atoms = label.atoms[:at] + parts + label.atoms[at + 1 :]
                ids = label.ids.reshape([a.size for a in atoms])
                label = Label(atoms, ids)
            labels.append(label)
        return Layout(dims, tuple(labels))

    def rename(self, names: dict[Atom, Atom]) -> "Layout":
        """Exchange atoms for others of the same size."""
        dims = tuple(tuple(names.get(a, a) for a in dim) for dim in self.dims)
        labels = tuple(
            Label(tuple(names.get(a, a) for a in label.atoms), label.ids) for label in self.labels
        )
        return Layout(dims, labels)

    def with_dims(self, dims: Sequence[tuple[Atom, ...]]) -> "Layout":
        """The same labels over dimensions in another arrangement."""
        return replace(self, dims=tuple(dims))


def size_of(atoms: Sequence[Atom]) -> int:
    """The number of entries along a product of atoms."""
    return int(np.prod([atom.size for atom in atoms])) if atoms else 1


def atom(size: int, uniform: bool = False, because: str = "") -> tuple[Atom, ...]:
    """A dimension of one fresh atom; a dimension of size 1 has none."""
    return (Atom(size, uniform, because),) if size != 1 else ()


def plain(shape: Sequence[int], uniform: bool = False, because: str = "") -> Layout:
    """A tensor along which no units lie."""
    return Layout(tuple(atom(size, uniform, because) for size in shape))


def excuse(atoms: Iterable[Atom]) -> str:
    """Why units were given up along some of these atoms, if they were."""
    return next((a.because for a in atoms if a.because), "")


def labelled(shape: Sequence[int], ids: Sequence[Ids | None]) -> Layout:
    """A tensor with one array of units (or none) along each dimension."""
    dims = tuple(atom(size) for size in shape)
    pairs = zip(dims, ids, strict=True)
    return Layout(dims, tuple(Label(d, i) for d, i in pairs if d and i is not None))


def common_factors(*factorisations: Sequence[int]) -> list[int] | None:
    """Factors that refine several factorisations of one number, or None if there are none.

    Example:
        >>> common_factors([3, 256], [12, 64])
        [3, 4, 64]
        >>> common_factors([4, 49], [14, 14]) is None
        True
    """
    # The products of the last one, two, ... sizes.
    marks = sorted({int(mark) for sizes in factorisations for mark in np.cumprod(sizes[::-1])})
    factors, previous = [], 1
    for mark in marks:
        if mark % previous:
            return None
        factors.append(mark // previous)
        previous = mark
    return [f for f in reversed(factors) if f != 1]


def split_atoms(layout: Layout, atoms: Sequence[Atom], factors: Sequence[int]) -> Layout:
    """Split consecutive atoms so that their sizes become `factors`, which refine them."""
    remaining = list(factors)
    for old in atoms:
        sizes, product = [], 1
        while product < old.size:
            sizes.append(remaining.pop(0))
            product *= sizes[-1]
        if len(sizes) > 1:
            layout = layout.substitute(
                old, [Atom(size, old.uniform, old.because) for size in sizes]
            )
    return layout


def prune(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Drop the labels that a finer label over the same atoms already implies."""
    kept: list[Label] = []
    for label in sorted(labels, key=lambda item: -len(item.atoms)):
        if not any(set(label.atoms) <= set(other.atoms) for other in kept):
            kept.append(label)
    return tuple(kept)
