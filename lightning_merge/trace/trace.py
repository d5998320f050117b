"""Walk through an exported network and learn which units lie along which axis."""

import operator
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from torch import Tensor, fx

from lightning_merge.trace.deadline import Deadline
from lightning_merge.trace.equivariance import limit_maps
from lightning_merge.trace.exported import Exported, bind, mutates, operator_name
from lightning_merge.trace.folds import Folds, find_folds
from lightning_merge.trace.layout import Atom, Label, Layout, atom, excuse, labelled, plain
from lightning_merge.trace.rules import RULES, layouts_in
from lightning_merge.trace.rules.rule_table import Call, Unsupported
from lightning_merge.trace.units import Cause, Ids, Role, Units

OUTPUT = "the network's output"


@dataclass
class Slot:
    """A part of a parameter or buffer along which units lie.

    Attributes:
        tensor: Its name in the state dict.
        shape: The shape under which the axes are counted; the tensor's own, except where a
            grouped convolution's axis 0 is seen as `(groups, outputs of a group)`.
        axes: The axes over which `ids` run.
        ids: Units, one axis for each of `axes`.
        role: What the tensor does with them.
    """

    tensor: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    ids: Ids
    role: Role = "scales"


@dataclass
class Trace:
    """What was learned: units, where they lie, and the layout of every value."""

    units: Units
    slots: list[Slot]
    values: dict[str, Any]
    unknown: dict[str, int]
    folds: Folds


def walk(exported: Exported, deadline: Deadline) -> Trace:
    """Give units to all parameters and carry them through the graph."""
    units = Units()
    slots: list[Slot] = []
    values: dict[str, Any] = {}
    unknown: dict[str, int] = {}
    groups = _grouped_weights(exported)
    folds = find_folds(exported)
    for node in exported.module.graph.nodes:
        deadline.check("tracing the network")
        if node.op == "placeholder":
            values[node.name] = _placeholder(exported, node, units, slots, groups)
        elif node.op == "get_attr":
            value = getattr(exported.module, str(node.target), None)
            values[node.name] = (
                constant(value, str(node.target)) if isinstance(value, Tensor) else value
            )
        elif node.op == "call_function":
            values[node.name] = _call(node, values, units, unknown, folds.nodes)
        elif node.op == "output":
            for layout in layouts_in(_fill(node.args, values)):
                for label in layout.labels:
                    units.freeze(label.ids, OUTPUT, Cause.OUTPUT)
    _give_roles(units, slots)
    return Trace(units, slots, values, unknown, folds)


def _give_roles(units: Units, slots: list[Slot]) -> None:
    """Set the role of each slot, from what the rules stated of its units."""
    stated = np.full(units.count, -1)
    roles: tuple[Role, ...] = get_args(Role)
    for ids, role in reversed(units.roles):
        stated[ids] = roles.index(role)
    layers = {slot.tensor for slot in slots if (stated[slot.ids] >= 0).any()}
    for slot in slots:
        found = stated[slot.ids.ravel()]
        found = found[found >= 0]
        if len(found):
            slot.role = roles[found[0]]
        elif slot.tensor in layers:
            # An axis that lost its units on the way to the layer, as in a standardised weight.
            slot.role = "makes" if slot.axes[0] == 0 else "reads"


def _placeholder(
    exported: Exported,
    node: fx.Node,
    units: Units,
    slots: list[Slot],
    groups: dict[str, int],
) -> Layout | None:
    """Fresh units along every axis of a parameter; none along inputs and constants."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    shape = tuple(int(size) for size in value.shape)
    name = exported.tensors.get(node.name)
    if name is None or not value.is_floating_point() or not node.users:
        given = exported.constants.get(node.name)
        if isinstance(given, Tensor):
            return constant(given, node.name)
        if node.name in exported.inputs:
            return replace(plain(shape), is_data=True)
        return plain(shape, because=f"the constant {name} differs along it")
    if groups.get(node.name, 1) > 1:
        return _grouped(name, shape, groups[node.name], units, slots)
    ids = [units.fresh((size,)) if size > 1 else None for size in shape]
    for axis, one in enumerate(ids):
        if one is not None:
            slots.append(Slot(name, shape, (axis,), one))
    return labelled(shape, ids)


def constant(value: Tensor, name: str) -> Layout:
    """A tensor that nothing permutes: only where all its entries agree may units move."""
    dims = []
    for dim, size in enumerate(value.shape):
        equal = bool((value == value.narrow(dim, 0, 1)).all()) if size > 1 else True
        dims.append(atom(size, equal, "" if equal else f"the constant {name} differs along it"))
    return Layout(tuple(dims))


def _grouped(
    name: str, shape: tuple[int, ...], groups: int, units: Units, slots: list[Slot]
) -> Layout:
    """A grouped convolution's weight: its input units differ from group to group."""
    view = (groups, shape[0] // groups, *shape[1:])
    atoms = tuple(Atom(size) for size in view)
    labels = []
    for axes in ((0, 1), (0, 2), *((axis,) for axis in range(3, len(view)))):
        kept = tuple(axis for axis in axes if view[axis] > 1)
        if not kept or (axes == (0, 2) and kept == (0,)):
            continue
        ids = units.fresh(tuple(view[axis] for axis in kept))
        labels.append(Label(tuple(atoms[axis] for axis in kept), ids))
        slots.append(Slot(name, view, kept, ids))
    if len(labels) > 1 and view[2] > 1:
        # Both labels see the groups: the groups must move alike in both.
        outer = [units.project(label.ids, (0,)) for label in labels[:2]]
        units.tie(outer[0], outer[1])
    dims = [tuple(a for a in atoms[:2] if a.size > 1)]
    dims += [(a,) if a.size > 1 else () for a in atoms[2:]]
    return Layout(tuple(dims), tuple(labels))


def _grouped_weights(exported: Exported) -> dict[str, int]:
    """The placeholders that are weights of grouped convolutions, with their groups."""
    found = {}
    for node in exported.module.graph.nodes:
        if node.op == "call_function" and "conv" in operator_name(node.target):
            arguments = bind(node)
            weight = arguments.get("weight")
            if isinstance(weight, fx.Node) and arguments.get("groups", 1) > 1:
                found[weight.name] = int(arguments["groups"])
    return found


def _call(
    node: fx.Node,
    values: dict[str, Any],
    units: Units,
    unknown: dict[str, int],
    folded: frozenset[str],
) -> Any:
    """The layout of one operator's result."""
    if node.target is operator.getitem:
        source, item = _first(node), node.args[1]
        value = values[source]
        return value[item] if isinstance(value, list | tuple) and isinstance(item, int) else value
    meta = node.meta.get("val")
    outputs = list(meta) if isinstance(meta, list | tuple) else [meta]
    if not any(isinstance(value, Tensor) for value in outputs):
        return None
    shapes = [tuple(int(s) for s in v.shape) if isinstance(v, Tensor) else () for v in outputs]
    name = operator_name(node.target)
    call = Call(units, name, _fill(bind(node), values), shapes)
    try:
        if name not in RULES:
            raise Unsupported
        result = RULES[name](call)
        got = [x.shape for x in (result if isinstance(result, list) else [result])]
        if got != shapes:
            raise Unsupported
    except Unsupported:
        because = f"the operator {name} has no rule for this use"
        labels = [label for layout in call.layouts for label in layout.labels]
        for label in labels:
            units.freeze(label.ids, because)
        if labels:
            unknown[name] = unknown.get(name, 0) + 1
        else:
            because = excuse([a for layout in call.layouts for a in layout.atoms])
        layouts = [plain(shape, because=because) for shape in shapes]
        result = layouts if isinstance(meta, list | tuple) else layouts[0]
    limit_maps(call, node, result, folded)
    if any(layout.is_data for layout in call.layouts):
        if isinstance(result, list):
            result = [replace(layout, is_data=True) for layout in result]
        else:
            result = replace(result, is_data=True)
    if mutates(node) and isinstance(result, Layout):
        # Later readers of the mutated value see the result.
        values[_first(node)] = result
    return result


def _first(node: fx.Node) -> str:
    """The name of the node that a call reads first."""
    return node.all_input_nodes[0].name


def _fill(value: Any, values: dict[str, Any]) -> Any:
    """Replace nodes by their layouts in a nest of arguments."""
    if isinstance(value, fx.Node):
        return values.get(value.name)
    if isinstance(value, dict):
        return {key: _fill(item, values) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(item, values) for item in value]
    return value
