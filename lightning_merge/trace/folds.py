"""Which scales and shifts can be put into the layers next to them without changing a function.

`W (g * n(x) + b) = (W diag(g)) n(x) + W b`: the weight of a norm goes into the layers that read
it, and LayerScale into the layer that writes what it scales. Behind that every orthogonal matrix
passes through the norm.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from lightning_merge.trace.exported import Exported, bind, operator_name

_NORMS = frozenset({"layer_norm", "rms_norm", "_fused_rms_norm"})
_SAME = frozenset({"dropout", "clone", "contiguous", "detach", "alias", "_to_copy", "to", "float"})
_PADS = frozenset({"pad", "constant_pad_nd"})
_LAYERS = frozenset({"linear", "conv1d", "conv2d", "conv3d", "convolution"})


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution: the names of its weight and its bias, if there is one.

    Attributes:
        weight: The weight; its axis 1 reads, its axis 0 writes.
        bias: The bias; None if there is none of its own.
        bare: Whether there is no bias at all: nothing can be folded into it.
        padded: Whether zeros are put around what it reads.
    """

    weight: str
    bias: str | None
    bare: bool = False
    padded: bool = False


@dataclass(frozen=True)
class NormFold:
    """A norm whose weight can go into the layers that read it.

    Attributes:
        weight: The norm's weight.
        bias: The norm's bias, or None.
        readers: The layers.
        takes_mean: Whether it takes the mean off (a LayerNorm).
    """

    weight: str
    bias: str | None
    readers: tuple[Layer, ...]
    takes_mean: bool

    @property
    def takes_bias(self) -> bool:
        """Whether the readers can take up the bias as well."""
        return self.bias is not None and all(r.bias and not r.padded for r in self.readers)


@dataclass(frozen=True)
class ScaleFold:
    """A LayerScale that can go into the layer whose output it scales."""

    scale: str
    writer: Layer


@dataclass(frozen=True)
class Folds:
    """All folds of a network, and the names of their nodes in its graph."""

    norms: tuple[NormFold, ...] = ()
    scales: tuple[ScaleFold, ...] = ()
    nodes: frozenset[str] = frozenset()


def find_folds(exported: Exported) -> Folds:
    """The norms that linear layers alone read, and the scales right behind a layer."""
    norms, scales, nodes = [], [], set()
    uses = _uses(exported)
    for node in exported.module.graph.nodes:
        if node.op != "call_function":
            continue
        name = operator_name(node.target)
        found: NormFold | ScaleFold | None = None
        if name in _NORMS:
            found = _norm(exported, node, name, uses)
            if found:
                norms.append(found)
        elif name in ("mul", "multiply"):
            found = _scale(exported, node, uses)
            if found:
                scales.append(found)
        if found:
            nodes.add(node.name)
    return Folds(tuple(norms), tuple(scales), frozenset(nodes))


def _uses(exported: Exported) -> dict[str, int]:
    """How often each parameter is used, under whatever placeholder."""
    uses: dict[str, int] = {}
    for node in exported.module.graph.nodes:
        name = exported.tensors.get(node.name) if node.op == "placeholder" else None
        if name is not None:
            uses[name] = uses.get(name, 0) + len(node.users)
    return uses


def _own(exported: Exported, value: Any, uses: dict[str, int]) -> str | None:
    """The name of a parameter that is used here only."""
    name = exported.tensors.get(value.name) if isinstance(value, fx.Node) else None
    return name if name is not None and uses.get(name) == 1 else None


def _norm(exported: Exported, node: fx.Node, name: str, uses: dict[str, int]) -> NormFold | None:
    bound = bind(node)
    weight = _own(exported, bound.get("weight"), uses)
    bias = _own(exported, bound.get("bias"), uses)
    if weight is None or len(bound["normalized_shape"]) != 1:
        return None
    if bound.get("bias") is not None and bias is None:
        return None
    readers = []
    for reader, padded in _readers(node, node.meta["val"].ndim - 1, False):
        layer = None if reader is None else _layer(exported, reader, uses, padded)
        if layer is None:
            return None
        readers.append(layer)
    return NormFold(weight, bias, tuple(readers), name == "layer_norm") if readers else None


def _readers(node: fx.Node, dim: int, padded: bool) -> Iterator[tuple[fx.Node | None, bool]]:
    """The layers that read a value along one dimension, None for anything else.

    Beside each, whether zeros are put around what it reads.
    """
    for user in node.users:
        if user.op != "call_function":
            yield None, padded
            continue
        name = operator_name(user.target)
        rank = node.meta["val"].ndim
        if name in _LAYERS:
            reads = dim == (rank - 1 if name == "linear" else 1)
            yield user if reads and bind(user).get("input") is node else None, padded
            continue
        behind = _passed(user, name, node, dim)
        if behind is None:
            yield None, padded
        else:
            widened = user.meta["val"].shape != node.meta["val"].shape
            yield from _readers(user, behind, padded or (name in _PADS and widened))


def _passed(user: fx.Node, name: str, node: fx.Node, dim: int) -> int | None:
    """Where a dimension lies behind an operator that leaves it as it is; None if none does."""
    if not hasattr(user.meta.get("val"), "ndim"):
        return None
    before, after = node.meta["val"], user.meta["val"]
    bound = bind(user)
    found: int | None = None
    if name in _SAME:
        found = dim
    elif name == "permute":
        found = [d % before.ndim for d in bound["dims"]].index(dim)
    elif name in ("transpose", "swapaxes"):
        pair = [bound["dim0"] % before.ndim, bound["dim1"] % before.ndim]
        found = pair[1 - pair.index(dim)] if dim in pair else dim
    elif name in ("reshape", "view", "flatten", "roll", "_unsafe_view"):
        found = after.ndim - 1 if dim == before.ndim - 1 else None
    elif name in ("select", "slice", "mean", "index_select"):
        gone = bound.get("dim")
        gone = [gone] if isinstance(gone, int) else list(gone or range(before.ndim))
        gone = [d % before.ndim for d in gone]
        dropped = name == "select" or (name == "mean" and not bound.get("keepdim"))
        if dim not in gone:
            found = dim - (sum(d < dim for d in gone) if dropped else 0)
    elif name in _PADS:
        amounts = bound["pad"][2 * (before.ndim - 1 - dim) :][:2]
        found = None if any(amounts) or bound.get("value") else dim
    elif name == "unsqueeze":
        at = bound["dim"] % after.ndim
        found = dim + (at <= dim)
    if found is None or after.shape[found] != before.shape[dim]:
        return None
    return found


def _layer(
    exported: Exported, node: fx.Node, uses: dict[str, int], padded: bool = False
) -> Layer | None:
    """The layer that a node is, if its weight is a parameter of its own."""
    bound = bind(node)
    weight = _own(exported, bound.get("weight"), uses)
    if weight is None or bound.get("groups", 1) != 1:
        return None
    padding = bound.get("padding", 0)
    padded |= any(padding) if isinstance(padding, list | tuple) else bool(padding)
    bias = _own(exported, bound.get("bias"), uses)
    return Layer(weight, bias, bound.get("bias") is None, padded)


def _scale(exported: Exported, node: fx.Node, uses: dict[str, int]) -> ScaleFold | None:
    """A vector that multiplies the output of a layer, which nothing else reads."""
    bound = bind(node)
    for scale, value in ((bound["other"], bound["self"]), (bound["self"], bound["other"])):
        name = _own(exported, scale, uses)
        if name is None or not isinstance(value, fx.Node) or scale.meta["val"].ndim != 1:
            continue
        while len(value.users) == 1 and value.op == "call_function":
            kind = operator_name(value.target)
            if kind == "linear":
                layer = _layer(exported, value, uses)
                fits = layer is not None and (layer.bare or layer.bias is not None)
                return ScaleFold(name, layer) if layer is not None and fits else None
            last = value.meta["val"].shape[-1] if hasattr(value.meta.get("val"), "shape") else 0
            source = value.args[0] if value.args else None
            if kind not in _SAME | {"reshape", "view"} or not isinstance(source, fx.Node):
                break
            if source.meta["val"].shape[-1:] != (last,):
                break
            value = source
    return None
