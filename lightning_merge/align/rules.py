"""The table of rules, one for each ATen operator, and the rules of the plain operators.

A rule receives the operator's arguments by their names in its schema, with a `Layout` in
place of each tensor, and returns the layout of the result (or a list of layouts). It says
three things at most: what is tied, what is held in place, and what the result's axes are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from lightning_merge.align import algebra
from lightning_merge.align.layout import Layout, plain
from lightning_merge.align.units import Cause, Units


class Unsupported(Exception):  # noqa: N818 - a signal between rule and trace, never shown
    """A use of an operator for which its rule has no answer: what it touches is frozen."""


@dataclass
class Call:
    """One operator call: `call["weight"]` is the layout of the argument `weight`."""

    units: Units
    operator: str
    arguments: dict[str, Any]
    shapes: list[tuple[int, ...]]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str) -> Any:
        """An argument, or None where the operator does not take it or was not given it."""
        return self.arguments.get(name)

    @property
    def layouts(self) -> list[Layout]:
        """The layouts of all tensor arguments, also of those in lists."""
        return list(layouts_in(self.arguments.values()))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the (first) result."""
        return self.shapes[0]

    @property
    def reason(self) -> str:
        """Why units that meet fixed positions in this operator are frozen."""
        return f"{self.operator} combines it with fixed positions"


def layouts_in(values: Any) -> list[Layout]:
    """All layouts in a nest of sequences."""
    found: list[Layout] = []
    for value in values:
        if isinstance(value, Layout):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(layouts_in(value))
    return found


Rule = Callable[[Call], Layout | list[Layout]]
R = TypeVar("R", bound=Rule)
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[R], R]:
    """Register a rule for ATen operators, named without overload and trailing underscore."""

    def register(function: R) -> R:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def dimension(layout: Layout, dim: int) -> int:
    """A dimension counted from the front."""
    return dim % max(len(layout.dims), 1)


@rule(
    *("relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "mish", "elu", "selu", "celu"),
    *("leaky_relu", "hardswish", "hardsigmoid", "hardtanh", "softplus", "softsign", "log_sigmoid"),
    *("abs", "neg", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "erf", "sin"),
    *("cos", "sign", "round", "floor", "ceil", "reciprocal", "clamp", "clamp_min", "clamp_max"),
    *("add", "sub", "rsub", "mul", "div", "pow", "maximum", "minimum", "addcmul", "addcdiv"),
    *("where", "lerp", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or"),
    *("logical_not", "bitwise_and", "bitwise_or", "bitwise_not", "masked_fill", "floor_divide"),
    *("remainder", "fmod", "xlogy", "threshold", "logit", "nan_to_num", "isnan", "isfinite"),
    *("dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "detach", "alias"),
    *("to", "_to_copy", "type_as", "float", "double", "half", "lift_fresh_copy", "positive"),
    *("hardshrink", "softshrink", "copysign", "atan2", "isinf", "tan", "atan", "sinh", "cosh"),
    *("multiply", "divide", "subtract", "true_divide", "negative", "absolute", "clip", "fill"),
    *("bitwise_xor", "logical_xor", "exp2", "log2", "log10", "erfc", "sinc", "trunc", "frac"),
)
def elementwise(call: Call) -> Layout:
    """Entry by entry, broadcasting: what lies along the same dimension is tied."""
    layouts = call.layouts
    if call.operator in ("to", "type_as"):
        layouts = layouts[:1]
    return algebra.elementwise(call.units, layouts, call.reason)


@rule("copy")
def copy(call: Call) -> Layout:
    """`a.copy_(b)`: tied, because `a` may be a view of a larger tensor."""
    return algebra.elementwise(call.units, [call["self"], call["src"]], call.reason)


@rule(
    *("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "scalar_tensor"),
)
def constant(call: Call) -> Layout:
    """Equal entries everywhere: any permutation leaves them as they are."""
    return plain(call.shape, uniform=True)


@rule("arange", "linspace", "eye", "tril_indices", "meshgrid", "tril", "triu")
def positions(call: Call) -> list[Layout] | Layout:
    """Coordinates: positions that nothing may permute."""
    if any(layout.labels for layout in call.layouts):
        raise Unsupported
    layouts = [plain(shape, because="coordinates lie along it") for shape in call.shapes]
    return layouts if call.operator == "meshgrid" else layouts[0]


@rule("prelu")
def prelu(call: Call) -> Layout:
    """One slope for each channel, along dimension 1."""
    x, weight = call["self"], call["weight"]
    return along(call, x, 1, [weight])


def along(call: Call, x: Layout, dim: int, vectors: Sequence[Layout | None]) -> Layout:
    """`x` combined entry by entry with vectors that lie along one of its dimensions."""
    rank = len(x.dims)
    placed = [
        v.with_dims(((),) * dim + v.dims + ((),) * (rank - dim - 1))
        for v in vectors
        if v is not None and v.dims
    ]
    return algebra.elementwise(call.units, [x, *placed], call.reason)


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolution(call: Call) -> Layout:
    """Consume the input's channels, create those of the weight's axis 0.

    A grouped convolution has a block structure: channels stay with their group, and
    groups move as wholes, on the input's and the output's side alike.
    """
    if call.get("transposed"):
        raise Unsupported
    x, weight, groups = call["input"], call["weight"], call["groups"]
    rank = len(weight.dims)
    spatial = range(len(x.dims) - rank + 2, len(x.dims))
    if len(x.dims) != rank:
        raise Unsupported
    x = algebra.freeze(
        call.units, x, [a for d in spatial for a in x.dims[d]], "spatial positions are convolved"
    )
    weight = algebra.freeze(
        call.units,
        weight,
        [a for dim in weight.dims[2:] for a in dim],
        "kernel positions",
        Cause.KERNEL,
    )
    batch, (out, inside) = x.dims[0], weight.dims[:2]
    x_in = x.with_dims((batch, x.dims[1]))
    w_in = weight.with_dims((out, inside))
    if groups > 1:
        channels, outputs = x.shape[1], weight.shape[0]
        x_in = algebra.reshape(call.units, x_in, [x.shape[0], groups, channels // groups])
        w_in = algebra.reshape(call.units, w_in, [groups, outputs // groups, weight.shape[1]])
        y = algebra.contract(call.units, [x_in, w_in], ["bgi", "goi"], "bgo", call.reason)
        y = y.with_dims((y.dims[0], y.dims[1] + y.dims[2]))
    else:
        y = algebra.contract(call.units, [x_in, w_in], ["bi", "oi"], "bo", call.reason)
    y = y.with_dims(y.dims + plain(call.shape[2:]).dims)
    return along(call, y, 1, [call.get("bias")])


@rule("linear")
def linear(call: Call) -> Layout:
    """Consume the last dimension, create one along the weight's axis 0."""
    x, weight = call["input"], call["weight"]
    letters = "abcdefgh"[: len(x.dims) - 1]
    y = algebra.contract(call.units, [x, weight], [letters + "i", "oi"], letters + "o", call.reason)
    return along(call, y, len(y.dims) - 1, [call.get("bias")])


@rule("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm")
def batch_norm(call: Call) -> Layout:
    """Scale, shift and statistics move with the channels of dimension 1."""
    x = call["input"]
    training = call.get("training") or call.operator == "instance_norm"
    if training:
        outside = [a for d, dim in enumerate(x.dims) if d != 1 for a in dim]
        algebra.reduce(call.units, x, outside)
    names = ("weight", "bias", "running_mean", "running_var")
    return along(call, x, 1, [call.get(name) for name in names])


@rule("layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> Layout:
    """Normalise over the last dimensions: their units stay together, scale and shift follow."""
    x = call["input"]
    count = len(call["normalized_shape"])
    algebra.reduce(call.units, x, [a for dim in x.dims[-count:] for a in dim])
    vectors = [v for v in (call.get("weight"), call.get("bias")) if v is not None]
    return algebra.elementwise(call.units, [x, *vectors], call.reason)


@rule("group_norm")
def group_norm(call: Call) -> Layout:
    """Channels stay with their normalisation group; groups move as wholes."""
    x, groups = call["input"], call["num_groups"]
    split = algebra.reshape(call.units, x, [x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]])
    algebra.reduce(call.units, split, [a for dim in split.dims[2:] for a in dim])
    return along(call, x, 1, [call.get("weight"), call.get("bias")])


@rule(
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "max_unpool2d"),
    *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest1d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "lp_pool2d", "grid_sampler"),
    *("reflection_pad2d", "replication_pad2d", "max_pool2d_with_indices", "upsample_linear1d"),
)
def pool(call: Call) -> Layout | list[Layout]:
    """Channel by channel over space: spatial positions stay in place."""
    x = call.layouts[0]
    count = 1 if "1d" in call.operator else 3 if "3d" in call.operator else 2
    at = len(x.dims) - count
    reason = f"{call.operator} treats it as spatial positions"
    x = algebra.freeze(call.units, x, [a for dim in x.dims[at:] for a in dim], reason)
    layouts = [x.with_dims(x.dims[:at] + plain(shape[at:]).dims) for shape in call.shapes]
    return layouts if len(call.shapes) > 1 else layouts[0]


@rule("channel_shuffle")
def channel_shuffle(call: Call) -> Layout:
    """Channels of all groups interleaved."""
    x, groups = call["self"], call["groups"]
    index = np.arange(x.shape[1]).reshape(groups, -1).T.ravel()
    return algebra.take(call.units, x, 1, index)
