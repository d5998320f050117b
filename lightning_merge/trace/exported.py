"""A network exported with `torch.export`, before decomposition.

One rule for each ATen operator is then enough for every way of writing a network.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_merge.errors import AlignmentError
from lightning_merge.modes import gradient_free
from lightning_merge.randomness import isolated_randomness
from lightning_merge.trace.inline import inline_regions


@dataclass
class Exported:
    """An exported network: its graph, and what each placeholder stands for."""

    module: fx.GraphModule
    tensors: dict[str, str]  # placeholder -> name of a parameter or buffer
    inputs: list[str]  # placeholders of the network's inputs
    constants: dict[str, Any]  # placeholder -> tensor that is in no state dict
    outputs: int  # how many of the graph's first outputs are mutated buffers
    state: dict[str, Tensor] = field(repr=False)  # detached parameters and buffers

    @property
    def used(self) -> set[str]:
        """Names of the parameters and buffers that the graph reads."""
        nodes = self.module.graph.find_nodes(op="placeholder")
        return {
            self.tensors[node.name] for node in nodes if node.name in self.tensors and node.users
        }


def export(model: nn.Module, inputs: Sequence[Tensor]) -> Exported:
    """Export a network in eval mode, leaving the network as it was.

    Raises:
        AlignmentError: The network cannot be exported; the message names the line.
    """
    with gradient_free(model):
        try:
            # What the exporter imports the first time draws from Python's generator.
            with isolated_randomness(), torch.no_grad(), warnings.catch_warnings():
                # The exporter warns of attributes that it sets and restores by itself.
                warnings.simplefilter("ignore")
                program = torch.export.export(model, tuple(inputs), strict=False)
        except Exception as error:  # torch.export has no common base of its errors
            raise AlignmentError(
                f"{type(model).__name__} cannot be exported, so its permutations cannot be "
                f"derived: {describe(error)}"
            ) from error
        finally:
            # Networks that keep tables computed in eval mode throw them away when they are
            # trained; those kept during the export hold no numbers.
            model.train()
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


def structure_hash(exported: Exported) -> str:
    """A hash of all that decides which units may move: the graph, and tensors' names and shapes."""
    lines = [str(exported.module.graph), repr(sorted(exported.tensors.items()))]
    lines += [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in exported.state.items()]
    # What may move depends on the values of constants: on which of their entries are equal.
    lines += [f"{name} {_digest(value)}" for name, value in exported.constants.items()]
    constants = dict(exported.module.named_buffers())
    lines += [f"{n} {_digest(t)}" for n, t in constants.items() if n not in exported.state]
    for node in exported.module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor):
            lines.append(f"{node.name} {tuple(value.shape)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _digest(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    entries = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(entries.tobytes()).hexdigest()}"


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


def operator_name(target: Any) -> str:
    """`aten.relu_.default` -> `relu`."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return getattr(target, "__name__", str(target))
    name = schema.name.split("::")[-1]
    return name.rstrip("_") if not name.startswith("__") else name


def mutates(node: fx.Node) -> bool:
    """Whether a call changes the value of its first argument in place."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.is_mutable and node.args and isinstance(node.args[0], fx.Node))


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
