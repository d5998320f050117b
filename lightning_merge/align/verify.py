"""Numerical proof of a derived spec: in float64, with everything randomised.

Default BatchNorm statistics, zero-initialised heads and equal biases would let wrong specs
pass, so no tensor keeps its value. The graph is run once and its values are kept; a
permuted group recomputes only what it changes, and stops where the values are as before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from lightning_merge.align.group import Group, gather, to_sources
from lightning_merge.align.trace import Exported, bind, operator_name
from lightning_merge.errors import AlignmentError

TOLERANCE = 1e-9
SCALES = (1.0, 0.3, 0.1)
_UNCHANGED = 1e-11
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_VIEWS = frozenset({"view", "reshape", "slice", "select", "transpose", "permute", "getitem"})
_VIEWS |= {"chunk", "split", "unbind", "expand", "narrow", "squeeze", "unsqueeze", "flatten", "t"}


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
            schema = getattr(node.target, "_schema", None)
            if schema is not None and schema.is_mutable and isinstance(node.args[0], fx.Node):
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
            return torch.float64 if value in _FLOATS else value

        args: Any = fx.node.map_aggregate(node.args, fill)
        kwargs: Any = fx.node.map_aggregate(node.kwargs, fill)
        target: Any = node.target
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

    def error(self, changed: Mapping[str, Tensor]) -> float:
        """How much the output changes, relatively, if these tensors are exchanged."""
        dirty: dict[str, Any] = {
            placeholder: tensor
            for name, tensor in changed.items()
            for placeholder in self.placeholders.get(name, [])
        }
        if not self.pure:
            return _distance(self.result(self.kept), self.result(self.full(self.given | dirty)))
        overlay = _Overlay(self.kept, dirty)
        for node in self.nodes:
            if not any(name in dirty for name in self.reads[node.name]):
                continue
            value = self.run(overlay, node)
            if not _same(value, self.kept[node.name]):
                dirty[node.name] = value
        return _distance(self.result(self.kept), self.result(overlay))


class _Overlay(dict[str, Any]):
    """Kept values, some of them replaced."""

    def __init__(self, kept: Mapping[str, Any], dirty: dict[str, Any]) -> None:
        super().__init__()
        self.kept, self.dirty = kept, dirty

    def __missing__(self, key: str) -> Any:
        return self.dirty[key] if key in self.dirty else self.kept[key]


def verify(exported: Exported, groups: list[Group]) -> tuple[list[Group], list[str]]:
    """Keep the groups that provably leave the function unchanged.

    Each group and all groups together, under random permutations, must leave the output
    unchanged to a relative 1e-9. That this check could fail is checked too: the output's
    derivative in the direction of permuting one member alone must differ from zero.

    Returns:
        The groups that passed, and a line for each that did not.
    """
    before = torch.get_default_dtype()
    # Operators that create tensors without a dtype must create float64 as well.
    torch.set_default_dtype(torch.float64)
    try:
        return _verify(exported, groups, torch.Generator().manual_seed(20240229))
    finally:
        torch.set_default_dtype(before)


def _verify(
    exported: Exported, groups: list[Group], generator: torch.Generator
) -> tuple[list[Group], list[str]]:
    replay = prepare(exported, generator, SCALES)
    with torch.no_grad():
        base = replay.result(replay.kept)
    state = {name: replay.given[p[0]] for name, p in replay.placeholders.items()}
    failed: list[str] = []
    passed = []
    with torch.no_grad():
        for group in groups:
            error = replay.error(_permuted(state, [group], generator))
            if error <= TOLERANCE:
                passed.append(group)
            else:
                failed.append(
                    f"{group.name}: permuting it changes the output by {error:.1e}: frozen"
                )
        if _together(replay, state, passed, base, generator) > TOLERANCE:
            passed, more = _one_after_another(replay, state, passed, generator)
            failed += more
    deaf = _deaf(replay, state, passed, generator)
    for scale in SCALES[1:] if deaf else ():
        # Large scores saturate a softmax, which then hides its units; smaller ones do not.
        replay = prepare(exported, generator, [scale])
        state = {name: replay.given[p[0]] for name, p in replay.placeholders.items()}
        deaf = _deaf(replay, state, deaf, generator)
    failed += [f"{g.name}: the output does not depend on it: frozen" for g in deaf]
    return [group for group in passed if group not in deaf], failed


def prepare(exported: Exported, generator: torch.Generator, scales: Sequence[float]) -> Replay:
    """Run the network in float64 on random inputs with random parameters and buffers.

    Raises:
        AlignmentError: No random state gives finite outputs.
    """
    for scale in scales:
        state = randomise(exported, generator, scale)
        inputs = []
        for node in exported.module.graph.nodes:
            if node.op == "placeholder" and node.name in exported.inputs:
                value = node.meta["val"]
                device = next(iter(exported.state.values())).device if exported.state else "cpu"
                if value.is_floating_point():
                    x = torch.randn(tuple(value.shape), generator=generator, dtype=torch.float64)
                else:
                    x = torch.zeros(tuple(value.shape), dtype=value.dtype)
                inputs.append(x.to(device))
        replay = Replay(exported, state, inputs)
        with torch.no_grad():
            replay.kept = replay.full()
        outputs = replay.result(replay.kept)
        if all(bool(torch.isfinite(x).all()) and float(x.std()) > 0 for x in outputs):
            return replay
    raise AlignmentError("the network's output is not finite for random parameters")


def randomise(
    exported: Exported, generator: torch.Generator, scale: float = 1.0
) -> dict[str, Tensor]:
    """Random float64 values for every floating-point tensor; variances stay positive."""
    state = {}
    buffers = _buffers(exported)
    for name, tensor in exported.state.items():
        if not tensor.is_floating_point():
            state[name] = tensor
            continue
        # Drawn in float32, which is quicker: the values need not fill 53 bits.
        noise = torch.randn(tuple(tensor.shape), generator=generator).to(tensor.device).double()
        if name.endswith("running_mean"):
            value = 0.3 * noise  # means above the activations would silence every ReLU
        elif name in buffers:
            value = noise.abs() + 0.5
        elif tensor.ndim > 1 and tensor.shape[0] == 1:
            value = noise  # embeddings tell tokens apart; without them attention is uniform
        elif tensor.ndim > 1:
            fan_in = tensor.numel() / tensor.shape[0]
            value = noise * (2.0 / fan_in) ** 0.5 * scale
        else:
            value = 0.3 * noise + (0.0 if name.endswith("bias") else 1.0)
        state[name] = value
    return state


def _buffers(exported: Exported) -> set[str]:
    return {target for name, target in exported.tensors.items() if name.startswith("b_")}


def _permuted(
    state: Mapping[str, Tensor], groups: Sequence[Group], generator: torch.Generator
) -> dict[str, Tensor]:
    """The tensors that random permutations of these groups change."""
    permutation = {group.name: group.random(generator) for group in groups}
    by_tensor: dict[str, list[Any]] = {}
    for place, source in to_sources(groups, permutation).items():
        if place[0] in state:
            by_tensor.setdefault(place[0], []).append((place, source))
    return {name: gather(state[name], sources) for name, sources in by_tensor.items()}


def _together(
    replay: Replay,
    state: Mapping[str, Tensor],
    groups: Sequence[Group],
    base: list[Tensor],
    generator: torch.Generator,
) -> float:
    """The error of all groups at once, by a complete run."""
    given = dict(replay.given)
    for name, tensor in _permuted(state, groups, generator).items():
        given.update(dict.fromkeys(replay.placeholders[name], tensor))
    return _distance(base, replay.result(replay.full(given)))


def _one_after_another(
    replay: Replay,
    state: Mapping[str, Tensor],
    groups: Sequence[Group],
    generator: torch.Generator,
) -> tuple[list[Group], list[str]]:
    """Groups that are right alone but wrong together: keep those that fit what is kept."""
    kept: list[Group] = []
    failed = []
    for group in groups:
        if replay.error(_permuted(state, [*kept, group], generator)) <= TOLERANCE:
            kept.append(group)
        else:
            failed.append(f"{group.name}: does not combine with the other groups: frozen")
    return kept, failed


def _deaf(
    replay: Replay,
    state: Mapping[str, Tensor],
    groups: Sequence[Group],
    generator: torch.Generator,
) -> list[Group]:
    """The groups of which no member alone would change the output."""
    # Running statistics have no derivative; what else moves with their units has.
    buffers = _buffers(replay.exported)
    leaves = {
        name: tensor.detach().clone().requires_grad_()
        for name, tensor in state.items()
        if tensor.is_floating_point() and name not in buffers
    }
    given = dict(replay.given)
    for name, leaf in leaves.items():
        given.update(dict.fromkeys(replay.placeholders[name], leaf))
    with torch.enable_grad():
        outputs = replay.result(replay.full(given))
        weights = [
            torch.randn(tuple(x.shape), generator=generator, dtype=torch.float64).to(x.device)
            for x in outputs
        ]
        total = sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)  # type: ignore[arg-type]
    slopes = dict(zip(leaves, gradients, strict=True))
    return [group for group in groups if not _heard(group, state, slopes, generator)]


def _heard(
    group: Group,
    state: Mapping[str, Tensor],
    slopes: Mapping[str, Tensor | None],
    generator: torch.Generator,
) -> bool:
    """Whether permuting some single member would change the output to first order."""
    permutation = group.random(generator)
    if torch.equal(permutation, group.identity()):
        permutation = torch.arange(group.size).reshape(group.blocks, -1).flip(1).reshape(-1)
    for member in group.members:
        slope = slopes.get(member.tensor)
        if slope is None:
            continue
        before = state[member.tensor]
        # A fused projection holds q and k rows in one tensor: one of them alone must count.
        member = replace(member, index=member.index[:, :1])
        after = gather(before, [(member.place, group.sources(member, permutation))])
        change = after - before
        product = float((slope * change).sum().abs())
        if product > 1e-8 * float(slope.norm() * change.norm()) > 0:
            return True
    return False


def _double(value: Any) -> Any:
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


def _distance(old: list[Tensor], new: list[Tensor]) -> float:
    """The largest relative change of any output; infinite if one is not finite."""
    worst = 0.0
    for a, b in zip(old, new, strict=True):
        error = float((a - b).norm() / a.norm().clamp_min(1e-300))
        worst = max(worst, error if error == error else float("inf"))
    return worst


__all__ = ["Replay", "bind", "prepare", "randomise", "verify"]
