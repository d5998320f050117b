"""Rules of the operators that work entry by entry, and of those that make constants."""

from collections.abc import Sequence

from lightning_merge.trace import algebra
from lightning_merge.trace.layout import Layout, plain
from lightning_merge.trace.rules.rule_table import Call, Unsupported, rule

SUMS = frozenset({"add", "sub", "subtract"})


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
    "rrelu",
)
def elementwise(call: Call) -> Layout:
    """Entry by entry, broadcasting: what lies along the same dimension is tied."""
    layouts = call.layouts
    if call.operator in ("to", "type_as"):
        layouts = layouts[:1]
    # A product takes the units of what depends on the inputs, not those of its scale.
    layouts = sorted(layouts, key=lambda layout: not layout.is_data)
    return algebra.elementwise(call.units, layouts, call.reason, int(call.operator in SUMS))


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
    return along(call, x, 1, [weight], 0)


def along(
    call: Call, x: Layout, dim: int, vectors: Sequence[Layout | None], sign: int = 1
) -> Layout:
    """`x` combined entry by entry with vectors that lie along one of its dimensions."""
    rank = len(x.dims)
    placed = [
        v.with_dims(((),) * dim + v.dims + ((),) * (rank - dim - 1))
        for v in vectors
        if v is not None and v.dims
    ]
    return algebra.elementwise(call.units, [x, *placed], call.reason, sign)
