"""Narrow networks in the coordinates of wide ones: units are padded or copied, the function stays.

A network of the same family but of smaller width becomes a state dict of the wide one's shapes,
in which its own units come first, heads among heads and units inside their heads, and zeros read
all others. Where a norm counts its units and nothing can make up for zeros, as behind depthwise
kernels, each unit is there several times instead (Net2WiderNet, Chen et al. 2016). The result can
then be aligned to the wide network and merged with it.
"""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_merge.checkpoint import tensors_of
from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.canonical import centred
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.unit_group import Group, other_positions
from lightning_merge.tensor_names import is_running_variance

_TOLERANCE = 1e-6
# Axes of a grouped convolution's inputs, counted as `(groups, outputs, inputs, ...)`.
_GROUPED_INPUTS = (0, 2)


def widened(
    narrow: nn.Module, wide: nn.Module, example_inputs: Tensor | Sequence[Tensor]
) -> dict[str, Tensor]:
    """The narrow network as a state dict of the wide one's shapes, of the same function.

    Streams behind norms are written larger by `sqrt(wide / narrow)`, which the norms' weights
    take back, so that a norm over more units gives the same; queries are larger likewise where
    heads are wider. If that does not keep the function, the streams that it does not suit are
    filled with copies of their units, as often as the wide network is wider, each read with as
    small a share. The result is checked on random numbers of the inputs' kind in float64.

    Args:
        narrow: The network to be padded; neither network is changed.
        wide: A network whose tensors have the same names, and nowhere fewer units.
        example_inputs: A batch as both take it, or a tuple of their arguments.

    Returns:
        New tensors in the order, dtypes and devices of the wide network's.

    Raises:
        AlignmentError: The networks are not of one family, or padding would change the function.
    """
    _check_names(tensors_of(narrow), tensors_of(wide))
    here, there = (
        PermutationSpec.from_model(model, example_inputs, symmetries="all")
        for model in (narrow, wide)
    )
    counterparts = _counterparts(here, there)
    changes = []
    for copied in (False, True):
        state = _laid_out(narrow, wide, here, there, counterparts, copied)
        changes.append(_change(narrow, wide, state, example_inputs))
        if changes[-1] <= _TOLERANCE:
            return {name: state[name].to(like.dtype) for name, like in tensors_of(wide).items()}
    raise AlignmentError(
        f"{type(narrow).__name__} cannot be padded: its output would change by {min(changes):.1e}, "
        f"as norms count units; {_advice(here, counterparts)}"
    )


def _check_names(narrow: Mapping[str, Tensor], wide: Mapping[str, Tensor]) -> None:
    """Whether two state dicts have tensors of the same names and numbers of dimensions."""
    for one, other, which in ((wide, narrow, "narrow"), (narrow, wide, "wide")):
        for name, tensor in one.items():
            if name not in other or other[name].ndim != tensor.ndim:
                raise AlignmentError(
                    f"the {which} network has no {name!r} of {tensor.ndim} dimensions, the other "
                    "one has: widths alone may differ, give networks of the same layers"
                )


def _counterparts(narrow: PermutationSpec, wide: PermutationSpec) -> list[tuple[Group, Group]]:
    """Each group of the narrow network with that of the wide one which lies in the same tensors.

    Names do not tell: units inside the only head have no heads to be named after.
    """
    left = list(wide.groups)
    pairs = []
    for group in narrow.groups:
        other = next((one for one in left if _places(one) == _places(group)), None)
        if other is None:
            raise AlignmentError(
                f"group {group.name!r} of the narrow network ({_in_words(*_sizes(group))}) has no "
                "counterpart in the wide one: give both networks the same layers and as many heads"
            )
        left.remove(other)
        mine, theirs = _sizes(group), _sizes(other)
        if theirs[0] < mine[0] or theirs[1] < mine[1]:
            raise AlignmentError(
                f"group {group.name!r} has {_in_words(*mine)} in the narrow network and "
                f"{_in_words(*theirs)} in the wide one, which needs as many or more"
            )
        pairs.append((group, other))
    return pairs


def _places(group: Group) -> tuple[bool, set[tuple[str, tuple[int, ...]]]]:
    return group.level > 0, {(member.tensor, member.axes) for member in group.members}


def _sizes(group: Group) -> tuple[int, int]:
    """How many blocks, and how many units in each."""
    return group.blocks, group.size // group.blocks


def _in_words(blocks: int, width: int) -> str:
    return f"{width} units" if blocks == 1 else f"{blocks} blocks of {width} units"


def _advice(narrow: PermutationSpec, counterparts: Sequence[tuple[Group, Group]]) -> str:
    """What to do where neither zeros nor copies keep the function."""
    counted = [
        pair
        for pair in counterparts
        if _may_be_counted(pair[0], narrow) and _sizes(pair[1])[1] % _sizes(pair[0])[1]
    ]
    # The scales of a norm lie along what it counts.
    normed = [pair for pair in counted if any(m.role == "scales" for m in pair[0].members)]
    uneven = [
        f"{group.name!r} ({_sizes(other)[1]} now, {_sizes(group)[1]} in the narrow one)"
        for group, other in normed or counted
    ]
    if not uneven:
        return "give both networks the same width where they do, and more heads or blocks instead"
    more = f" and {len(uneven) - 3} more" if len(uneven) > 3 else ""
    return f"give the wide network a multiple of the units of {', '.join(uneven[:3])}{more}"


def _laid_out(
    narrow: nn.Module,
    wide: nn.Module,
    here: PermutationSpec,
    there: PermutationSpec,
    counterparts: Sequence[tuple[Group, Group]],
    copied: bool,
) -> dict[str, Tensor]:
    """The narrow network's tensors among the wide one's, units of some streams copied or not.

    In float64 where they are numbers, so that what rounds them is not taken for a change.
    """
    state = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in tensors_of(narrow).items()
    }
    source = here.canonical(state)
    _enlarge(source, here, counterparts)
    places = _positions(source, here, counterparts, copied)
    free = _free(there, counterparts)
    return {
        name: _padded(source[name], like, name, places.get(name, {}), free, here.frozen)
        for name, like in tensors_of(wide).items()
    }


def _enlarge(
    source: dict[str, Tensor],
    narrow: PermutationSpec,
    counterparts: Sequence[tuple[Group, Group]],
) -> None:
    """Make up for norms over more units, and for a softmax over products of wider heads."""
    biases = {norm.bias for norm in narrow.folds.norms}
    for group, other in counterparts:
        ratio = (other.size / other.blocks) / (group.size / group.blocks)
        normed = _is_normed(group, narrow)
        if normed:
            # A norm over more units gives as many times larger values, whatever it reads.
            moved = {member.tensor for member in group.members}
            for weight in (norm.weight for norm in narrow.folds.norms if norm.weight in moved):
                source[weight] = source[weight] / math.sqrt(ratio)
        # Queries and keys: both make what is multiplied, one by the other's inverse transpose.
        multiplied = group.symmetry == "invertible" and any(
            member.role == "makes" and member.variance < 0 for member in group.members
        )
        for member in group.members:
            if member.variance <= 0 or member.tensor in biases or not (normed or multiplied):
                continue
            tensor = source[member.tensor].clone()
            rows = tensor.movedim(member.axis, 0)
            rows[member.index.reshape(-1)] *= math.sqrt(ratio)
            source[member.tensor] = tensor


def _is_normed(group: Group, spec: PermutationSpec) -> bool:
    """Whether only norms read the units, to which the mean over the units does not matter."""
    return group.symmetry == "orthogonal" and (
        not group.keeps_ones or bool(centred(group, spec.folds))
    )


def _positions(
    source: dict[str, Tensor],
    narrow: PermutationSpec,
    counterparts: Sequence[tuple[Group, Group]],
    copied: bool,
) -> dict[str, dict[int, tuple[Tensor, Tensor]]]:
    """By tensor and axis, the narrow network's positions and where they come to lie.

    Of units that come to lie at several places, what reads them in `source` is divided by as many.
    """
    found: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    # Units inside heads say more than heads as wholes, whose positions may not be as many.
    for group, other in sorted(counterparts, key=lambda pair: pair[0].level):
        even = _sizes(other)[1] % _sizes(group)[1] == 0
        rows = _rows(group, other, copied and even and _may_be_counted(group, narrow))
        theirs = {(m.place[0], m.axes): [] for m in other.members}  # type: ignore[var-annotated]
        for member in other.members:
            theirs[member.tensor, member.axes].append(member)
        for member in group.members:
            match = next(
                (
                    one
                    for one in theirs.get((member.tensor, member.axes), [])
                    if one.variance == member.variance and one.repeat == member.repeat
                ),
                None,
            )
            if match is None:
                continue
            axis, here, there = member.axis, member.index, match.index[rows]
            if member.axes == _GROUPED_INPUTS:
                # The same inputs of each of a convolution's groups, which its outputs place.
                if member.repeat > 1:
                    continue
                first = here[:, 0] < member.shape[2]
                axis, here, there = 1, here[first], there[first] % match.shape[2]
            axes = found.setdefault(member.tensor, {})
            old, new = axes.get(axis, (torch.zeros(0).long(), torch.zeros(0).long()))
            # Those of heads as wholes that units inside them have placed stay there.
            left = ~torch.isin(here, old)[:, None].expand(there.shape)
            axes[axis] = (
                torch.cat([old, here[:, None].expand(there.shape)[left]]),
                torch.cat([new, there[left]]),
            )
            if rows.shape[1] > 1 and member.role == "reads":
                source[member.tensor] = source[member.tensor].clone()
                read = source[member.tensor].movedim(axis, 0)
                read[here.reshape(-1)] /= rows.shape[1]
    return found


def _may_be_counted(group: Group, narrow: PermutationSpec) -> bool:
    """Whether there may be a norm that counts the units, to which zeros would matter."""
    return not (
        group.symmetry == "invertible" or group.inside(narrow.groups) or _is_normed(group, narrow)
    )


def _rows(group: Group, other: Group, copied: bool) -> Tensor:
    """Which of the wide group's units each of the narrow group's becomes, `(size, copies)`."""
    width, room = group.size // group.blocks, other.size // other.blocks
    copies = room // width if copied else 1
    unit = torch.arange(group.size)
    first = unit // width * room + unit % width * copies
    return first[:, None] + torch.arange(copies)


def _padded(
    tensor: Tensor,
    like: Tensor,
    name: str,
    places: dict[int, tuple[Tensor, Tensor]],
    free: Mapping[tuple[str, int], Tensor],
    frozen: Sequence[str],
) -> Tensor:
    """A tensor put among zeros, variances among ones."""
    value = tensor.to(like.device)
    for axis, (size, room) in enumerate(zip(value.shape, like.shape, strict=True)):
        old, new = places.get(axis, (torch.zeros(0).long(), torch.zeros(0).long()))
        # Single units, and tokens that are parameters among positions that stay.
        rest, there = other_positions(old, size), free.get((name, axis), torch.arange(room))
        if len(rest) not in (0, len(there)):
            layer = name.rpartition(".")[0]
            why = [line for line in frozen if line.startswith(f"{name} axis {axis}: ")]
            why += [line for line in frozen if line.startswith(f"{layer}.") and ":" in line]
            because = f", because {why[0].partition(': ')[2]}" if why else ""
            raise AlignmentError(
                f"{name!r} axis {axis}: {len(rest)} of {size} positions cannot be placed among "
                f"{room}{because}: give both networks as many there"
            )
        old, new = (
            x.to(like.device)
            for x in (torch.cat([old, rest]), torch.cat([new, there[: len(rest)]]))
        )
        shape = [*value.shape[:axis], room, *value.shape[axis + 1 :]]
        filler = torch.ones if is_running_variance(name) else torch.zeros
        wider = filler(shape, dtype=value.dtype, device=value.device)
        wider.index_copy_(axis, new, value.index_select(axis, old))
        value = wider
    return value.clone()


def _free(
    wide: PermutationSpec, counterparts: Sequence[tuple[Group, Group]]
) -> dict[tuple[str, int], Tensor]:
    """By tensor and axis, the wide network's positions for what no group of the narrow one moves.

    A single unit, which cannot be exchanged, becomes the first of a group without counterpart.
    """
    matched = [other for _, other in counterparts]
    taken: dict[tuple[str, int], Tensor] = {}
    for group in wide.groups:
        for member in group.members:
            if member.axes == _GROUPED_INPUTS:
                continue
            place = member.tensor, member.axis
            if place not in taken:
                taken[place] = torch.zeros(member.length, dtype=torch.bool)
            taken[place][member.index if group in matched else member.index[1:]] = True
    return {place: (~mask).nonzero()[:, 0] for place, mask in taken.items()}


def _change(
    narrow: nn.Module,
    wide: nn.Module,
    state: dict[str, Tensor],
    example_inputs: Tensor | Sequence[Tensor],
) -> float:
    """How far the outputs are apart, as a share of the narrow network's."""
    single = isinstance(example_inputs, Tensor)
    inputs = (example_inputs,) if single else tuple(example_inputs)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    outputs = []
    for model, given in ((narrow, tensors_of(narrow)), (wide, state)):
        twin = copy.deepcopy(model).double().eval()
        twin.load_state_dict(given, strict=False)
        with torch.no_grad():
            leaves = [x.flatten() for x in tree_leaves(twin(*inputs)) if isinstance(x, Tensor)]
        outputs.append(torch.cat(leaves).double())
    change = float((outputs[1] - outputs[0]).norm() / outputs[0].norm().clamp_min(1e-300))
    return math.inf if math.isnan(change) else change
