"""The few moves on layouts from which every operator's rule is made."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from lightning_merge.trace.layout import (
    Atom,
    Label,
    Layout,
    atom,
    common_factors,
    excuse,
    prune,
    size_of,
    split_atoms,
)
from lightning_merge.trace.units import Cause, Ids, Units


def restrict(units: Units, label: Label, atoms: Sequence[Atom]) -> Ids:
    """The units of a label as seen along some of its atoms only, in the order given."""
    return units.project(label.ids, tuple(label.atoms.index(a) for a in atoms))


def agree(
    units: Units,
    layouts: Sequence[Layout],
    fixed: Sequence[set[Atom]],
    reason: str,
    sign: int = 1,
    summed: Collection[Atom] = (),
) -> tuple[Label, ...]:
    """Tie what lies along the shared atoms of several tensors, and return the joint labels.

    A unit that meets a fixed position (a pixel, a token) is frozen. `fixed` is given apart
    from the layouts because a shared atom may be fixed in one of them and uniform in another.
    Linear maps go together by `sign`; along `summed` atoms one is the other's inverse transpose.
    """
    joint: tuple[Label, ...] = ()
    held: set[Atom] = set()
    for layout, positions in zip(layouts, fixed, strict=True):
        for mine in layout.labels:
            for other in joint:
                shared = [a for a in other.atoms if a in mine.atoms]
                if shared:
                    units.tie(
                        restrict(units, other, shared),
                        restrict(units, mine, shared),
                        -1 if any(a in summed for a in shared) else sign,
                    )
            hold(units, mine, held, reason)
        for other in joint:
            hold(units, other, positions, reason)
        held |= positions
        joint = prune([*joint, *layout.labels])
    return joint


def hold(units: Units, label: Label, positions: set[Atom], reason: str) -> None:
    """Freeze a label along those of its atoms that are fixed positions elsewhere."""
    shared = [a for a in label.atoms if a in positions]
    if shared:
        because = excuse(shared)
        cause = Cause.LOST if because else Cause.POSITION
        units.freeze(restrict(units, label, shared), because or reason, cause)


def apart(layout: Layout) -> Layout:
    """Atoms of its own: an outer product of a tensor with itself has two dimensions, not one."""
    return layout.rename({a: replace(a) for a in layout.atoms})


def freeze(
    units: Units, layout: Layout, atoms: Sequence[Atom], reason: str, cause: Cause = Cause.LOST
) -> Layout:
    """Hold everything that lies along these atoms in place, and drop its labels there."""
    labels = []
    given_up: dict[Atom, Atom] = {}
    for label in layout.labels:
        held = [a for a in label.atoms if a in atoms]
        if held:
            units.freeze(restrict(units, label, held), reason, cause)
            given_up.update({a: Atom(a.size, a.uniform, reason) for a in held})
        rest = [a for a in label.atoms if a not in atoms]
        if len(rest) == len(label.atoms):
            labels.append(label)
        elif rest:
            labels.append(Label(tuple(rest), restrict(units, label, rest)))
    return Layout(layout.dims, prune(labels)).rename(given_up)


def reduce(units: Units, layout: Layout, atoms: Sequence[Atom]) -> tuple[Label, ...]:
    """The labels that remain when these atoms are summed, averaged or maximised over."""
    labels = []
    for label in layout.labels:
        rest = [a for a in label.atoms if a not in atoms]
        if rest:
            labels.append(Label(tuple(rest), restrict(units, label, rest)))
    return prune(labels)


def share(
    units: Units, layouts: Sequence[Layout], pairs: Sequence[Sequence[tuple[int, int]]]
) -> tuple[list[Layout], list[set[Atom]]]:
    """Give dimensions that run over the same index the same atoms.

    `pairs` has for each shared index its `(tensor, dimension)` places, equal in size. What comes
    back with the layouts are, for each, the atoms that are fixed in it.
    """
    current = list(layouts)
    names: list[dict[Atom, Atom]] = [{} for _ in layouts]
    for places in pairs:
        factors = common_factors(*([a.size for a in current[t].dims[d]] for t, d in places))
        if factors is None:
            for at, dim in places:
                current[at], _ = merge(units, current[at], dim)
            factors = [current[places[0][0]].shape[places[0][1]]]
        for at, dim in places:
            current[at] = split_atoms(current[at], current[at].dims[dim], factors)
        for index, size in enumerate(factors):
            members = [current[at].dims[dim][index] for at, dim in places]
            common = Atom(size, all(a.uniform for a in members), _excuse(current, places, members))
            for (at, _), member in zip(places, members, strict=True):
                names[at][member] = common
    fixed = [
        {name.get(a, a) for a in layout.fixed()}
        for layout, name in zip(current, names, strict=True)
    ]
    renamed = [layout.rename(name) for layout, name in zip(current, names, strict=True)]
    return renamed, fixed


def _excuse(
    layouts: Sequence[Layout], places: Sequence[tuple[int, int]], members: Sequence[Atom]
) -> str:
    """Why a shared atom has no units where it has none: a true position needs no excuse."""
    bare = [
        member
        for (at, _), member in zip(places, members, strict=True)
        if not member.uniform and member not in layouts[at].labelled()
    ]
    return excuse(bare) if all(member.because for member in bare) else ""


def elementwise(units: Units, layouts: Sequence[Layout], reason: str, sign: int = 1) -> Layout:
    """The layout of an operation that combines broadcast tensors entry by entry.

    Args:
        units: The units.
        layouts: The tensors; units of the first one lie along the result.
        reason: What freezes units that meet fixed positions.
        sign: As in `Units.tie`: 1 for sums, 0 for products.
    """
    rank = max(len(layout.dims) for layout in layouts)
    padded = [
        apart(layout.with_dims(((),) * (rank - len(layout.dims)) + layout.dims))
        for layout in layouts
    ]
    pairs = []
    for dim in range(rank):
        places = [(at, dim) for at, layout in enumerate(padded) if layout.dims[dim]]
        if len(places) > 1:
            pairs.append(places)
    shared, fixed = share(units, padded, pairs)
    labels = agree(units, shared, fixed, reason, sign)
    dims = [
        next((layout.dims[dim] for layout in shared if layout.dims[dim]), ()) for dim in range(rank)
    ]
    return Layout(tuple(dims), labels)


def contract(
    units: Units,
    layouts: Sequence[Layout],
    indices: Sequence[str],
    output: str,
    reason: str,
) -> Layout:
    """The layout of an einsum: indices that are missing from `output` are summed over.

    There is one letter for each dimension; `reason` is what freezes units that meet fixed
    positions.
    """
    pairs = []
    for letter in dict.fromkeys("".join(indices)):
        places = [
            (at, dim)
            for at, letters in enumerate(indices)
            for dim, mine in enumerate(letters)
            if mine == letter and layouts[at].dims[dim]
        ]
        if len(places) > 1:
            pairs.append(places)
    shared, fixed = share(units, [apart(layout) for layout in layouts], pairs)
    atoms: dict[str, tuple[Atom, ...]] = {}
    for letters, layout in zip(indices, shared, strict=True):
        for letter, dim in zip(letters, layout.dims, strict=True):
            atoms[letter] = atoms.get(letter) or dim
    summed = [a for letter, dim in atoms.items() if letter not in output for a in dim]
    labels = agree(units, shared, fixed, reason, 0, summed)
    result = Layout(tuple(atoms[letter] for letter in output), labels)
    return Layout(result.dims, reduce(units, result, summed))


def merge(units: Units, layout: Layout, dim: int) -> tuple[Layout, Atom]:
    """Make one atom of a whole dimension, keeping what is known of its parts."""
    atoms = layout.dims[dim]
    if len(atoms) == 1:
        return layout, atoms[0]
    touching = [label for label in layout.labels if set(label.atoms) & set(atoms)]
    uniform = all(a.uniform for a in atoms)
    one = Atom(size_of(atoms), uniform, excuse(atoms))
    dims = (*layout.dims[:dim], (one,), *layout.dims[dim + 1 :])
    if not touching:
        return Layout(dims, layout.labels), one
    others = [label for label in layout.labels if label not in touching]
    if len(touching) == 1 and set(atoms) <= set(touching[0].atoms):
        label = touching[0]
        outside = [a for a in label.atoms if a not in atoms]
        order = [label.atoms.index(a) for a in (*outside, *atoms)]
        ids = label.ids.transpose(order).reshape([*(a.size for a in outside), one.size])
        return Layout(dims, (*others, Label((*outside, one), ids))), one
    joint = Label(atoms, units.fresh(tuple(a.size for a in atoms)))
    for label in touching:
        shared = [a for a in atoms if a in label.atoms]
        units.tie(restrict(units, joint, shared), restrict(units, label, shared))
        if len(shared) == len(label.atoms):
            # Whatever a map does to a unit it does at each of its positions.
            order = sorted(range(len(shared)), key=lambda at: atoms.index(label.atoms[at]))
            spread = label.ids.transpose(order).reshape(
                [a.size if a in shared else 1 for a in atoms]
            )
            units.link(joint.ids, np.broadcast_to(spread, joint.ids.shape))
        outside = [a for a in label.atoms if a not in atoms]
        if outside:
            others.append(Label(tuple(outside), restrict(units, label, outside)))
    fixed = [a for a in layout.fixed() if a in atoms]
    if fixed:
        reason = excuse(fixed) or "a reshape mixes it with fixed positions"
        units.freeze(restrict(units, joint, fixed), reason)
    merged = Label((one,), joint.ids.reshape(-1))
    return Layout(dims, prune([*others, merged])), one


def reshape(units: Units, layout: Layout, shape: Sequence[int]) -> Layout:
    """The layout after a row-major reshape."""
    source = list(layout.atoms)
    flat = layout
    dims: list[tuple[Atom, ...]] = []
    targets = list(shape)
    while targets or source:
        chunk: list[Atom] = []
        sizes: list[int] = []
        # The shortest runs of atoms and of target dimensions with equal products.
        while True:
            have, want = size_of(chunk), int(np.prod(sizes)) if sizes else 1
            if sizes and have == want:
                break
            if not sizes and not targets:
                break
            if not sizes or (want < have and targets):
                sizes.append(targets.pop(0))
            elif source:
                chunk.append(source.pop(0))
            else:
                raise ValueError(f"cannot reshape {layout.shape} to {tuple(shape)}")
        if not sizes:
            break
        factors = common_factors([a.size for a in chunk], sizes)
        temporary = flat.with_dims((*dims, tuple(chunk), tuple(source)))
        if factors is None:
            temporary, one = merge(units, temporary, len(dims))
            chunk, factors = [one], [s for s in sizes if s != 1]
        temporary = split_atoms(temporary, chunk, factors)
        parts = list(temporary.dims[len(dims)])
        flat, source = temporary, list(temporary.dims[-1])
        for size in sizes:
            mine: list[Atom] = []
            while size_of(mine) < size:
                mine.append(parts.pop(0))
            dims.append(tuple(mine))
    return flat.with_dims(dims)


def take(units: Units, layout: Layout, dim: int, index: Ids) -> Layout:
    """The entries of one dimension at these positions, in this order."""
    layout, old = merge(units, layout, dim) if layout.dims[dim] else (layout, Atom(1, True))
    new = atom(len(index), old.uniform, old.because)
    labels = []
    for label in layout.labels:
        if old in label.atoms:
            at = label.atoms.index(old)
            ids = label.ids.take(index, axis=at)
            atoms = label.atoms[:at] + new + label.atoms[at + 1 :]
            if not new:
                ids = ids.squeeze(at)
            if len(index) < old.size:
                units.piece(ids)
            if not atoms:
                units.freeze(ids, "picked out by its position")
                continue
            label = Label(atoms, ids)
        labels.append(label)
    return Layout((*layout.dims[:dim], new, *layout.dims[dim + 1 :]), prune(labels))


def concatenate(units: Units, layouts: Sequence[Layout], dim: int, reason: str) -> Layout:
    """The layout of `torch.cat`: segments along one dimension, ties along all others."""
    if len(layouts) == 1:
        return layouts[0]
    rank = len(layouts[0].dims)
    merged, ends = [], []
    # Slices of one tensor have the same atoms, and yet units of their own.
    for layout in map(apart, layouts):
        if layout.dims[dim]:
            layout, end = merge(units, layout, dim)
        else:
            end = Atom(1, uniform=True)
            layout = layout.with_dims((*layout.dims[:dim], (end,), *layout.dims[dim + 1 :]))
        merged.append(layout)
        ends.append(end)
    pairs = []
    for other in range(rank):
        places = [(at, other) for at, layout in enumerate(merged) if layout.dims[other]]
        if other != dim and len(places) > 1:
            pairs.append(places)
    shared, fixed = share(units, merged, pairs)
    is_stack = all(end.size == 1 for end in ends)
    if is_stack:
        shared = [_stackable(layout, end) for layout, end in zip(shared, ends, strict=True)]
    beside: dict[Atom, None] = {}
    for layout, end in zip(shared, ends, strict=True):
        for label in layout.labels:
            if end in label.atoms:
                beside.update(dict.fromkeys(a for a in label.atoms if a is not end))
    touched = any(
        end in label.atoms for x, end in zip(shared, ends, strict=True) for label in x.labels
    )
    new = Atom(sum(end.size for end in ends), because=excuse(ends))
    dims = [
        next((x.dims[d] for x in shared if x.dims[d]), ()) if d != dim else (new,)
        for d in range(rank)
    ]
    if not touched:
        return Layout(tuple(dims), agree(units, shared, fixed, reason))
    pieces, completed = [], []
    for layout, end, positions in zip(shared, ends, fixed, strict=True):
        wanted = (*beside, end)
        found = next((x for x in layout.labels if set(x.atoms) == set(wanted)), None)
        if found is None:
            found = Label(wanted, units.fresh(tuple(a.size for a in wanted)))
            extended = Layout(layout.dims, (found,))
            agree(units, [layout, extended], [positions, set()], reason)
        pieces.append(restrict(units, found, wanted))
        completed.append(Layout(layout.dims, prune([*layout.labels, found])))
    if is_stack:
        # Each tensor keeps its own order; what reads them together ties them.
        completed = [
            replace(x, labels=tuple(one for one in x.labels if end not in one.atoms))
            for x, end in zip(completed, ends, strict=True)
        ]
    labels = agree(units, completed, fixed, reason)
    rest = [label for label in labels if not set(label.atoms) & set(ends)]
    joint = Label((*beside, new), np.concatenate(pieces, axis=-1))
    return Layout(tuple(dims), prune([*rest, joint]))


def _stackable(layout: Layout, end: Atom) -> Layout:
    """Let labels reach over the new dimension, so that stacked tensors are not tied."""
    labels = [Label((*x.atoms, end), x.ids[..., None]) for x in layout.labels]
    return Layout(layout.dims, tuple(labels))
