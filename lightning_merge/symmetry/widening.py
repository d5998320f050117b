"""Narrow networks in the coordinates of wide ones: units are padded or copied, the function stays.

A network of the same family but of smaller width becomes a state dict of the wide one's shapes,
in which its own units come first, heads among heads and units inside their heads, and zeros read
all others. Where a norm counts its units and nothing can make up for zeros, as behind depthwise
kernels, each unit is there several times instead (Net2WiderNet, Chen et al. 2016). The result can
then be aligned to the wide network and merged with it.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.canonical import centred
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.unit_group import Group

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
    specs = [
        PermutationSpec.from_model(model, example_inputs, symmetries="all")
        for model in (narrow, wide)
    ]
    changes = []
    for copied in (False, True):
        state = _laid_out(narrow, wide, specs[0], specs[1], copied)
        changes.append(_change(narrow, wide, state, example_inputs))
        # A state dict in half or single precision has rounded the scales already.
        dtype = next(t.dtype for t in state.values() if t.is_floating_point())
        if changes[-1] <= max(_TOLERANCE, 100 * torch.finfo(dtype).eps):
            return state
    raise AlignmentError(
        f"{type(narrow).__name__} cannot be padded: its output would change by {min(changes):.1e}; "
        "a norm that cannot be passed counts its units (see spec.frozen): the wide network needs "
        "a multiple of them"
    )


def _laid_out(
    narrow: nn.Module,
    wide: nn.Module,
    here: PermutationSpec,
    there: PermutationSpec,
    copied: bool,
) -> dict[str, Tensor]:
    """The narrow network's tensors among the wide one's, units of some streams copied or not."""
    source = here.canonical(narrow)
    _enlarge(source, here, there)
    places = _positions(source, here, there, copied)
    result = {}
    for name, like in wide.state_dict().items():
        if name not in source or source[name].ndim != like.ndim:
            raise AlignmentError(f"the narrow network has no {name!r} of {like.ndim} dimensions")
        result[name] = _padded(source[name], like, name, places.get(name, {}))
    return result


def _enlarge(source: dict[str, Tensor], narrow: PermutationSpec, wide: PermutationSpec) -> None:
    """Make up for norms over more units, and for a softmax over products of wider heads."""
    biases = {norm.bias for norm in narrow.folds.norms}
    for group in narrow.groups:
        other = _same(wide, group)
        ratio = (other.size / other.blocks) / (group.size / group.blocks)
        normed = _is_normed(group, narrow)
        if normed:
            # A norm over more units gives as many times larger values, whatever it reads.
            moved = {member.tensor for member in group.members}
            for weight in (norm.weight for norm in narrow.folds.norms if norm.weight in moved):
                source[weight] = source[weight] / math.sqrt(ratio)
        multiplied = group.symmetry == "invertible" and group.name.endswith(".qk")
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


def _same(wide: PermutationSpec, group: Group) -> Group:
    """The wide network's group of the same name.

    Raises:
        AlignmentError: There is none, or it has fewer units.
    """
    other = next((g for g in wide.groups if g.name == group.name), None)
    fits = other is not None and other.blocks >= group.blocks
    if other is None or not fits or other.size // other.blocks < group.size // group.blocks:
        raise AlignmentError(
            f"group {group.name!r} of the narrow network has no counterpart of at least its "
            "size in the wide one: are they of one family?"
        )
    return other


def _positions(
    source: dict[str, Tensor], narrow: PermutationSpec, wide: PermutationSpec, copied: bool
) -> dict[str, dict[int, tuple[Tensor, Tensor]]]:
    """By tensor and axis, the narrow network's positions and where they come to lie.

    Of units that come to lie at several places, what reads them in `source` is divided by as many.
    """
    found: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    # Units inside heads say more than heads as wholes, whose positions may not be as many.
    for group in sorted(narrow.groups, key=lambda g: g.level):
        other = _same(wide, group)
        rows = _rows(group, other, copied and _may_be_copied(group, other, narrow))
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
                width = group.size // group.blocks
                axis, here, there = 1, here[:width] % width, there[:width] % match.shape[2]
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


def _may_be_copied(group: Group, other: Group, narrow: PermutationSpec) -> bool:
    """Whether a norm may count the units, and the wide network has a multiple of them."""
    if group.symmetry == "invertible" or group.inside(narrow.groups) or _is_normed(group, narrow):
        return False
    return (other.size // other.blocks) % (group.size // group.blocks) == 0


def _rows(group: Group, other: Group, copied: bool) -> Tensor:
    """Which of the wide group's units each of the narrow group's becomes, `(size, copies)`."""
    width, room = group.size // group.blocks, other.size // other.blocks
    copies = room // width if copied else 1
    unit = torch.arange(group.size)
    first = unit // width * room + unit % width * copies
    return first[:, None] + torch.arange(copies)


def _padded(
    tensor: Tensor, like: Tensor, name: str, places: dict[int, tuple[Tensor, Tensor]]
) -> Tensor:
    """A tensor put among zeros, variances among ones."""
    value = tensor.to(like.device)
    for axis in range(like.ndim):
        if axis not in places:
            if value.shape[axis] != like.shape[axis]:
                raise AlignmentError(
                    f"{name!r} axis {axis}: {value.shape[axis]} positions cannot become "
                    f"{like.shape[axis]}, as no group of units lies along it"
                )
            continue
        old, new = (index.to(like.device) for index in places[axis])
        if len(old) < value.shape[axis] == like.shape[axis]:
            # Tokens that are parameters among positions that stay.
            old, new = (
                torch.cat([index, _others(index, like.shape[axis])]) for index in (old, new)
            )
        if len(old.unique()) != value.shape[axis]:
            raise AlignmentError(
                f"{name!r} axis {axis}: not each of its {value.shape[axis]} positions is one unit "
                "that can be placed"
            )
        shape = [*value.shape[:axis], like.shape[axis], *value.shape[axis + 1 :]]
        filler = torch.ones if name.endswith("running_var") else torch.zeros
        wider = filler(shape, dtype=value.dtype, device=value.device)
        wider.index_copy_(axis, new, value.index_select(axis, old))
        value = wider
    return value.to(like.dtype).clone()


def _others(index: Tensor, size: int) -> Tensor:
    """The positions that are missing in an index."""
    rest = torch.ones(size, dtype=torch.bool, device=index.device)
    rest[index] = False
    return rest.nonzero()[:, 0]


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
    for model, given in ((narrow, narrow.state_dict()), (wide, state)):
        twin = copy.deepcopy(model).double().eval()
        twin.load_state_dict(given)
        with torch.no_grad():
            found = twin(*inputs)
        outputs.append(found[0] if isinstance(found, tuple) else found)
    change = float((outputs[1] - outputs[0]).norm() / outputs[0].norm().clamp_min(1e-300))
    return math.inf if math.isnan(change) else change
