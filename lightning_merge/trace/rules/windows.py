"""Rules of the operators that cut windows out of space and put them back."""

from lightning_merge.trace import algebra
from lightning_merge.trace.layout import Layout, excuse, plain
from lightning_merge.trace.rules.elementwise import along
from lightning_merge.trace.rules.rule_table import Call, Unsupported, dimension, rule
from lightning_merge.trace.units import Cause


@rule("unfold")
def unfold(call: Call) -> Layout:
    """Overlapping windows of one dimension: their number stays, their entries come last."""
    x = call["self"]
    dim = dimension(x, call["dimension"])
    x = algebra.freeze(call.units, x, x.dims[dim], "windows run over its positions")
    because = excuse(x.dims[dim])
    windows, entries = plain([call.shape[dim], call.shape[-1]], because=because).dims
    return x.with_dims((*x.dims[:dim], windows, *x.dims[dim + 1 :], entries))


@rule("im2col")
def im2col(call: Call) -> Layout:
    """`(N, C, H, W)` to `(N, C * window, windows)`: each channel repeated over its window."""
    x = call["self"]
    if len(x.dims) != 4:
        raise Unsupported
    spatial = [a for dim in x.dims[2:] for a in dim]
    x = algebra.freeze(call.units, x, spatial, "windows run over its positions")
    window = plain([call.shape[1] // x.shape[1]]).dims[0]
    return x.with_dims((x.dims[0], x.dims[1] + window, plain([call.shape[2]]).dims[0]))


@rule("col2im")
def col2im(call: Call) -> Layout:
    """`(N, C * window, windows)` to `(N, C, H, W)`: windows are added up where they overlap."""
    x = call["self"]
    if len(x.dims) != 3:
        raise Unsupported
    n, c = call.shape[:2]
    x = algebra.reshape(call.units, x, [n, c, x.shape[1] // c, x.shape[2]])
    fixed = [a for dim in x.dims[2:] for a in dim]
    x = algebra.freeze(call.units, x, fixed, "windows run over its positions")
    return x.with_dims((*x.dims[:2], *plain(call.shape[2:]).dims))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(call: Call) -> Layout:
    """A convolution whose weight is `(inputs, outputs / groups, *window)`."""
    x, weight, groups = call["input"], call["weight"], call["groups"]
    if len(x.dims) != len(weight.dims):
        raise Unsupported
    bias = call.get("bias")
    if not groups == x.shape[1] == call.shape[1]:  # a depthwise kernel scales its units
        call.role(weight, 1, "makes")
        call.role(weight, 0, "reads")
        call.role(bias, 0, "makes")
    spatial = [a for dim in x.dims[2:] for a in dim]
    x = algebra.freeze(call.units, x, spatial, "spatial positions are convolved")
    window = [a for dim in weight.dims[2:] for a in dim]
    weight = algebra.freeze(call.units, weight, window, "kernel positions", Cause.KERNEL)
    x = x.with_dims(x.dims[:2])
    weight = weight.with_dims(weight.dims[:2])
    if groups > 1:
        inside, outside = weight.shape
        x = algebra.reshape(call.units, x, [x.shape[0], groups, inside // groups])
        weight = algebra.reshape(call.units, weight, [groups, inside // groups, outside])
        shared = "a grouped transposed convolution shares this axis between its groups"
        weight = algebra.freeze(call.units, weight, weight.dims[2], shared)
        y = algebra.contract(call.units, [x, weight], ["bgi", "gio"], "bgo", call.reason)
        y = y.with_dims((y.dims[0], y.dims[1] + y.dims[2]))
    else:
        y = algebra.contract(call.units, [x, weight], ["bi", "io"], "bo", call.reason)
    y = y.with_dims((*y.dims, *plain(call.shape[2:]).dims))
    return along(call, y, 1, [bias])
