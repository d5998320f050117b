"""Rules of layers: convolutions, linear layers, norms and pooling."""

import numpy as np

from lightning_merge.trace import algebra
from lightning_merge.trace.layout import Label, Layout, plain
from lightning_merge.trace.rules.elementwise import along
from lightning_merge.trace.rules.rule_table import Call, Unsupported, rule
from lightning_merge.trace.units import Cause


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolution(call: Call) -> Layout:
    """Consume the input's channels, create those of the weight's axis 0.

    A grouped convolution has a block structure: channels stay with their group, and
    groups move as wholes, on the input's and the output's side alike.
    """
    if call.get("transposed"):
        raise Unsupported
    x, weight, groups = call["input"], call["weight"], call["groups"]
    bias, rank = call.get("bias"), len(weight.dims)
    spatial = range(len(x.dims) - rank + 2, len(x.dims))
    if len(x.dims) != rank:
        raise Unsupported
    if not groups == x.shape[1] == weight.shape[0]:  # a depthwise kernel scales its units
        call.role(weight, 1, "reads")
        call.role(weight, 0, "makes")
        call.role(bias, 0, "makes")
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
    return along(call, y, 1, [bias])


@rule("linear")
def linear(call: Call) -> Layout:
    """Consume the last dimension, create one along the weight's axis 0."""
    x, weight, bias = call["input"], call["weight"], call.get("bias")
    call.role(weight, 1, "reads")
    call.role(weight, 0, "makes")
    call.role(bias, 0, "makes")
    letters = "abcdefgh"[: len(x.dims) - 1]
    y = algebra.contract(call.units, [x, weight], [letters + "i", "oi"], letters + "o", call.reason)
    return along(call, y, len(y.dims) - 1, [bias])


@rule("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm")
def batch_norm(call: Call) -> Layout:
    """Scale, shift and statistics move with the channels of dimension 1."""
    x = call["input"]
    training = call.get("training") or call.operator == "instance_norm"
    if training:
        outside = [a for d, dim in enumerate(x.dims) if d != 1 for a in dim]
        algebra.reduce(call.units, x, outside)
    x = along(call, x, 1, [call.get("running_mean"), call.get("running_var")], 0)
    # What is scaled behind the norm need not be scaled before it.
    labels = []
    for label in x.labels:
        if set(label.atoms) <= set(x.dims[1]):
            behind = call.units.fresh(label.ids.shape)
            call.units.tie(label.ids, behind, 0)
            label = Label(label.atoms, behind)
        labels.append(label)
    x = Layout(x.dims, tuple(labels))
    return along(call, x, 1, [call.get("weight"), call.get("bias")])


@rule("layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> Layout:
    """Normalise over the last dimensions: their units stay together, scale and shift follow."""
    x = call["input"]
    count = len(call["normalized_shape"])
    algebra.reduce(call.units, x, [a for dim in x.dims[-count:] for a in dim])
    for vector, sign in ((call.get("weight"), 0), (call.get("bias"), 1)):
        if vector is not None:
            x = algebra.elementwise(call.units, [x, vector], call.reason, sign)
    return algebra.elementwise(call.units, [x], call.reason)


@rule("group_norm")
def group_norm(call: Call) -> Layout:
    """Channels stay with their normalisation group; groups move as wholes."""
    x, groups = call["input"], call["num_groups"]
    split = algebra.reshape(call.units, x, [x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]])
    algebra.reduce(call.units, split, [a for dim in split.dims[2:] for a in dim])
    return along(call, x, 1, [call.get("weight"), call.get("bias")])


@rule(
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "lp_pool1d"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "max_unpool2d"),
    *("max_pool1d_with_indices", "max_pool3d_with_indices", "upsample_nearest3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    *("upsample_trilinear3d", "reflection_pad1d", "reflection_pad3d", "replication_pad1d"),
    *("replication_pad3d", "max_unpool3d", "fractional_max_pool2d"),
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
