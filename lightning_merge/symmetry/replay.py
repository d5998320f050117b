"""Runs an exported network again in float64, on random numbers, and only what has changed.

Every value of one run is kept. When some tensors are exchanged, what reads them is run
again, and the run stops where the values are as before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from lightning_merge.errors import AlignmentError
from lightning_merge.trace.deadline import Deadline
from lightning_merge.trace.exported import Exported, bind, describe, mutates, operator_name

_UNCHANGED = 1e-11
_SCALES = (1.0, 0.3, 0.1)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_COMPLEX = (torch.complex64, torch.complex32)
_VIEWS = frozenset({"view", "reshape", "slice", "select", "transpose", "permute", "getitem"})
_VIEWS |= {"chunk", "split", "unbind", "expand", "narrow", "squeeze", "unsqueeze", "flatten", "t"}
_DROPOUT = frozenset({"dropout", "feature_dropout"})
_LAYERS = frozenset({"conv1d", "conv2d", "conv3d", "convolution", "linear"})


class Replay:
    """An exported graph with kept values, of which changed parts can be run again."""

    def __init__(self, exported: Exported, state: Mapping[str, Tensor], inputs: Sequence[Tensor]):
        self.exported = exported
        self.nodes = [n for n in exported.module.graph.nodes if n.op == "call_function"]
        self.output = next(n for n in exported.module.graph.nodes if n.op == "output")
        self.given: dict[str, Any] = {}
        self.placeholders: dict[str, list[str]] = {}
        by_name = dict(zip(exported.inputs, inputs, strict=True))
        for node in exported.module.graph.nodes:
            if node.op == "placeholder":
                name = exported.tensors.get(node.name)
                if name is not None:
                    self.given[node.name] = state[name]
                    self.placeholders.setdefault(name, []).append(node.name)
                elif node.name in by_name:
                    self.given[node.name] = by_name[node.name]
                else:
                    self.given[node.name] = _double(exported.constants.get(node.name))
            elif node.op == "get_attr":
                self.given[node.name] = _double(getattr(exported.module, str(node.target)))
        self._plan()
        self.kept: dict[str, Any] = {}

    @property
    def state(self) -> dict[str, Tensor]:
        """The present values of parameters and buffers, by name."""
        return {name: self.given[places[0]] for name, places in self.placeholders.items()}

    def _plan(self) -> None:
        """Find what each node reads, given that in-place operators change a value."""
        latest: dict[str, str] = {}
        self.reads: dict[str, list[str]] = {}
        self.alias: dict[str, dict[str, str]] = {}
        self.in_place: set[str] = set()
        self.pure = True
        for node in self.nodes:
            names = [n.name for n in node.all_input_nodes]
            self.alias[node.name] = {n: latest[n] for n in names if n in latest}
            self.reads[node.name] = [latest.get(n, n) for n in names]
            if mutates(node):
                target = node.args[0]
                self.in_place.add(node.name)
                latest[target.name] = node.name
                if target.op == "call_function" and operator_name(target.target) in _VIEWS:
                    self.pure = False
        names = [n.name for n in self.output.all_input_nodes]
        self.alias["output"] = {n: latest[n] for n in names if n in latest}

    def run(self, values: dict[str, Any], node: fx.Node) -> Any:
        """One operator on given values, float64 throughout."""
        alias = self.alias[node.name]

        def fetch(one: fx.Node) -> Any:
            return values[alias.get(one.name, one.name)]

        def fill(value: Any) -> Any:
            if isinstance(value, fx.Node):
                return fetch(value)
            if value in _COMPLEX:
                return torch.complex128
            return torch.float64 if value in _FLOATS else value

        args: Any = fx.node.map_aggregate(node.args, fill)
        kwargs: Any = fx.node.map_aggregate(node.kwargs, fill)
        target: Any = node.target
        if operator_name(target) in _DROPOUT and bind(node).get("train"):
            # One that is always on draws its masks anew. Permutations and scales pass through
            # it, and rotations do not: so through this, which draws nothing.
            return torch.nn.functional.leaky_relu(args[0], 0.5)
        if node.name in self.in_place and self.pure:
            args = (args[0].clone(), *args[1:])
        return target(*args, **kwargs)

    def result(self, values: Mapping[str, Any]) -> list[Tensor]:
        """The network's floating-point outputs."""
        alias = self.alias["output"]
        nodes = self.output.all_input_nodes if self.exported.outputs == 0 else None
        if nodes is None:
            nodes = [
                n for n in self.output.args[0][self.exported.outputs :] if isinstance(n, fx.Node)
            ]
        found = [values[alias.get(n.name, n.name)] for n in nodes]
        return [v for v in found if isinstance(v, Tensor) and v.is_floating_point()]

    def full(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Run everything."""
        values = dict(self.given if given is None else given)
        for node in self.nodes:
            values[node.name] = self.run(values, node)
        return values

    def keep(self, deadline: Deadline) -> None:
        """Run everything and keep it, scaling each layer so that its output has deviation 1.

        Then nothing overflows and no softmax or sigmoid is saturated: each would hide what
        comes before it. (Layer-sequential unit variance: Mishkin and Matas, 2016.)
        """
        values = dict(self.given)
        used: set[str] = set()
        for node in self.nodes:
            deadline.check("verifying the permutations")
            values[node.name] = self.run(values, node)
            if operator_name(node.target) in _LAYERS and _deviation(values[node.name]):
                values[node.name] = self._scale(node, values, used)
            used.update(n.name for n in node.all_input_nodes)
        self.kept = values

    def _scale(self, node: fx.Node, values: dict[str, Any], used: set[str]) -> Tensor:
        """Divide a layer's parameters by the deviation of its output."""
        bound = bind(node)
        value: Tensor = values[node.name]
        scale, every = _deviation(value), True
        for argument in ("weight", "bias"):
            one = bound.get(argument)
            if not isinstance(one, fx.Node):
                continue
            names = self.placeholders.get(self.exported.tensors.get(one.name, ""), [])
            if not names or used & set(names):
                every = False
                continue
            scaled = values[one.name] / scale
            values.update(dict.fromkeys(names, scaled))
            self.given.update(dict.fromkeys(names, scaled))
        if every:
            return value / scale
        again: Tensor = self.run(values, node)
        return again

    def error(self, changed: Mapping[str, Tensor]) -> float:
        """How much the output changes, relatively, if these tensors are exchanged."""
        dirty: dict[str, Any] = {
            placeholder: tensor
            for name, tensor in changed.items()
            for placeholder in self.placeholders.get(name, [])
        }
        if not self.pure:
            return distance(self.result(self.kept), self.result(self.full(self.given | dirty)))
        overlay = _Overlay(self.kept, dirty)
        for node in self.nodes:
            if not any(name in dirty for name in self.reads[node.name]):
                continue
            value = self.run(overlay, node)
            if not _same(value, self.kept[node.name]):
                dirty[node.name] = value
        return distance(self.result(self.kept), self.result(overlay))


class _Overlay(dict[str, Any]):
    """Kept values, some of them replaced."""

    def __init__(self, kept: Mapping[str, Any], dirty: dict[str, Any]) -> None:
        super().__init__()
        self.kept, self.dirty = kept, dirty

    def __missing__(self, key: str) -> Any:
        return self.dirty[key] if key in self.dirty else self.kept[key]


def prepare(exported: Exported, generator: torch.Generator, deadline: Deadline) -> Replay:
    """Run the network in float64 on random inputs with random parameters and buffers.

    Raises:
        AlignmentError: The time is up, the network does not run in float64, no random state gives
            finite outputs, or no output has real numbers.
    """
    fallback: Replay | None = None
    for scale in _SCALES:
        state = randomise(exported, generator, scale)
        inputs = []
        for node in exported.module.graph.nodes:
            if node.op == "placeholder" and node.name in exported.inputs:
                value = node.meta["val"]
                device = next(iter(exported.state.values())).device if exported.state else "cpu"
                if value.is_floating_point() or value.is_complex():
                    kind = torch.complex128 if value.is_complex() else torch.float64
                    x = torch.randn(tuple(value.shape), generator=generator, dtype=kind)
                else:
                    x = torch.zeros(tuple(value.shape), dtype=value.dtype)
                inputs.append(x.to(device))
        replay = Replay(exported, state, inputs)
        try:
            with torch.no_grad():
                replay.keep(deadline)
        except (RuntimeError, TypeError) as error:
            raise AlignmentError(
                "the network does not run in float64, in which its permutations are verified: "
                f"{describe(error)}"
            ) from error
        outputs = replay.result(replay.kept)
        if not outputs:
            raise AlignmentError(
                "the network gives no real numbers, by which its permutations could be verified: "
                "let forward return logits, and take their argmax outside"
            )
        if all(bool(torch.isfinite(x).all()) for x in outputs):
            varied = [_varies(x) for x in outputs]
            if all(varied):
                return replay
            # An output may be constant for good: a loss of zero, a temperature for all classes.
            fallback = fallback or (replay if any(varied) else None)
    if fallback is not None:
        return fallback
    raise AlignmentError("the network's output is not finite for random parameters")


def _varies(output: Tensor) -> bool:
    """Whether an output has different numbers; a single one has none to differ from."""
    return output.numel() < 2 or float(output.std()) > 0


def randomise(
    exported: Exported, generator: torch.Generator, scale: float = 1.0
) -> dict[str, Tensor]:
    """Random float64 values for every floating-point tensor; variances stay positive."""
    state = {}
    buffers = buffers_of(exported)
    for name, tensor in exported.state.items():
        if not tensor.is_floating_point():
            state[name] = _double(tensor)
            continue
        # Drawn in float32, which is quicker: the values need not fill 53 bits.
        noise = torch.randn(tuple(tensor.shape), generator=generator).to(tensor.device).double()
        if name.endswith("running_mean"):
            value = 0.3 * noise  # means above the activations would silence every ReLU
        elif name in buffers and (tensor.ndim or not tensor):
            value = noise.abs() + 0.5
        elif name in buffers:
            value = tensor.double()  # bounds of a clamp, drawn at random, would let nothing pass
        elif tensor.ndim > 1 and tensor.shape[0] == 1:
            value = noise  # embeddings tell tokens apart; without them attention is uniform
        elif tensor.ndim > 1 and tensor.numel():
            fan_in = tensor.numel() / tensor.shape[0]
            value = noise * (2.0 / fan_in) ** 0.5 * scale
        else:
            value = 0.3 * noise + (0.0 if name.endswith("bias") else 1.0)
        state[name] = value
    return state


def buffers_of(exported: Exported) -> set[str]:
    """The names of the buffers."""
    return {target for name, target in exported.tensors.items() if name.startswith("b_")}


def _deviation(value: Any) -> float:
    """The standard deviation of a value; 0 where it is none that one could divide by."""
    if not isinstance(value, Tensor) or value.numel() < 2:
        return 0.0
    deviation = float(value.std())
    return deviation if 0 < deviation < float("inf") else 0.0


def _double(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_complex():
        return value.to(torch.complex128)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _same(new: Any, old: Any) -> bool:
    """Whether a recomputed value is the kept one but for rounding."""
    if isinstance(new, list | tuple):
        return all(_same(a, b) for a, b in zip(new, old, strict=True))
    if not isinstance(new, Tensor) or not isinstance(old, Tensor):
        return bool(new == old)
    if not new.is_floating_point():
        return torch.equal(new, old)
    scale = float(old.abs().max()) if old.numel() else 0.0
    return new.numel() == 0 or float((new - old).abs().max()) <= _UNCHANGED * scale


def distance(old: list[Tensor], new: list[Tensor]) -> float:
    """The largest relative change of any output; infinite if one is not finite."""
    worst = 0.0
    for a, b in zip(old, new, strict=True):
        error = float((a - b).norm() / a.norm().clamp_min(1e-300))
        worst = max(worst, error if error == error else float("inf"))
    return worst
