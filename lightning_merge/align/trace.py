"""Walk through an exported network and learn which units lie along which axis.

The network is exported with `torch.export` before decomposition, so that one rule for each
ATen operator is enough for every way of writing a network.
"""

import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_merge.align import (  # noqa: F401 - register rules
    rules_attention,
    rules_einsum,
    rules_recurrent,
    rules_shape,
    rules_window,
)
from lightning_merge.align.deadline import Deadline
from lightning_merge.align.inline import inline_regions
from lightning_merge.align.layout import Atom, Label, Layout, atom, excuse, labelled, plain
from lightning_merge.align.rules import RULES, Call, Unsupported, layouts_in
from lightning_merge.align.units import Cause, Ids, Units
from lightning_merge.errors import AlignmentError

OUTPUT = "the network's output"


@dataclass
class Exported:
    """An exported network: its graph, and what each placeholder stands for."""

    module: fx.GraphModule
    tensors: dict[str, str]  # placeholder -> name of a parameter or buffer
    inputs: list[str]  # placeholders of the network's inputs
    constants: dict[str, Any]  # placeholder -> tensor that is in no state dict
    outputs: int  # how many of the graph's first outputs are mutated buffers
    state: dict[str, Tensor] = field(repr=False)  # detached parameters and buffers


@dataclass
class Slot:
    """A part of a parameter or buffer along which units lie.

    Attributes:
        tensor: Its name in the state dict.
        shape: The shape under which the axes are counted; the tensor's own, except where a
            grouped convolution's axis 0 is seen as `(groups, outputs of a group)`.
        axes: The axes over which `ids` run.
        ids: Units, one axis for each of `axes`.
    """

    tensor: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    ids: Ids


@dataclass
class Trace:
    """What was learned: units, where they lie, and the layout of every value."""

    units: Units
    slots: list[Slot]
    values: dict[str, Any]
    unknown: dict[str, int]


def export(model: nn.Module, inputs: Sequence[Tensor]) -> Exported:
    """Export a network in eval mode, leaving the network as it was.

    Raises:
        AlignmentError: The network cannot be exported; the message names the line.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            # The exporter warns of attributes that it sets and restores by itself.
            warnings.simplefilter("ignore")
            program = torch.export.export(model, tuple(inputs), strict=False)
    except Exception as error:  # torch.export has no common base of its errors
        raise AlignmentError(
            f"{type(model).__name__} cannot be exported, so its permutations cannot be derived: "
            f"{describe(error)}"
        ) from error
    finally:
        # Networks that keep tables computed in eval mode throw them away when they are trained;
        # those kept during the export hold no numbers.
        model.train()
        for module, training in modes.items():
            module.training = training
    signature = program.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = {
        name: program.constants[target]
        for name, target in {**signature.inputs_to_lifted_tensor_constants}.items()
    }
    for buffer in signature.non_persistent_buffers:
        for name, target in list(tensors.items()):
            if target == buffer:
                constants[name] = program.constants[buffer]
                del tensors[name]
    state = {name: tensor.detach() for name, tensor in program.state_dict.items()}
    inline_regions(program.graph_module)
    return Exported(
        module=program.graph_module,
        tensors=tensors,
        inputs=list(signature.user_inputs),
        constants=constants,
        outputs=len(signature.buffers_to_mutate) + len(signature.user_inputs_to_mutate),
        state=state,
    )


def describe(error: BaseException) -> str:
    """One line: the deepest line of the user's code in the traceback, and the message."""
    place = ""
    frame = error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        if "/torch/" not in code.co_filename and code.co_name not in ("export", "describe"):
            place = f"{code.co_filename}, line {frame.tb_lineno}: "
        frame = frame.tb_next
    text = str(error)
    # torch.export reports where an operator was called in the text, not the traceback.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    user = [x for x in lines if x.startswith("File ") and "/torch/" not in x]
    if user:
        place = f"{user[-1]}: "
    return f"{place}{lines[0] if lines else type(error).__name__}"[:500]


def walk(exported: Exported, deadline: Deadline) -> Trace:
    """Give units to all parameters and carry them through the graph."""
    units = Units()
    slots: list[Slot] = []
    values: dict[str, Any] = {}
    unknown: dict[str, int] = {}
    groups = _grouped_weights(exported)
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
            values[node.name] = _call(node, values, units, unknown)
        elif node.op == "output":
            for layout in layouts_in(_fill(node.args, values)):
                for label in layout.labels:
                    units.freeze(label.ids, OUTPUT, Cause.OUTPUT)
    return Trace(units, slots, values, unknown)


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
        because = "" if node.name in exported.inputs else f"the constant {name} differs along it"
        return plain(shape, because=because)
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


def operator_name(target: Any) -> str:
    """`aten.relu_.default` -> `relu`."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return getattr(target, "__name__", str(target))
    name = schema.name.split("::")[-1]
    return name.rstrip("_") if not name.startswith("__") else name


def bind(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by name, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(index): value for index, value in enumerate(node.args)}
    bound = {
        argument.name: argument.default_value
        for argument in schema.arguments
        if argument.has_default_value()
    }
    names = [argument.name for argument in schema.arguments]
    bound.update(zip(names, node.args, strict=False))
    bound.update(node.kwargs)
    return bound


def _call(node: fx.Node, values: dict[str, Any], units: Units, unknown: dict[str, int]) -> Any:
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
    if _in_place(node) and isinstance(result, Layout):
        # Later readers of the mutated value see the result.
        values[_first(node)] = result
    return result


def _first(node: fx.Node) -> str:
    """The name of the node that a call reads first."""
    return node.all_input_nodes[0].name


def _in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.is_mutable and node.args and isinstance(node.args[0], fx.Node))


def _fill(value: Any, values: dict[str, Any]) -> Any:
    """Replace nodes by their layouts in a nest of arguments."""
    if isinstance(value, fx.Node):
        return values.get(value.name)
    if isinstance(value, dict):
        return {key: _fill(item, values) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(item, values) for item in value]
    return value
