"""Which linear maps of units each operator lets pass: what `f(T x) = T f(x)` holds for.

A permutation passes nearly everything, a positive factor what is homogeneous (ReLU, pooling),
an orthogonal matrix a norm over all units, any matrix what is linear. An operator that is not
listed here lets permutations pass only. As everything that is derived, it is verified later.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import fx

from lightning_merge.trace.layout import Label, Layout
from lightning_merge.trace.rules.elementwise import SUMS
from lightning_merge.trace.rules.rule_table import Call, dimension, layouts_in
from lightning_merge.trace.units import EVERY_KIND, ORTHOGONAL, SCALED

_LINEAR_NAMES = (
    "reshape view flatten unflatten _unsafe_view reshape_as view_as squeeze unsqueeze permute "
    "transpose swapaxes swapdims t numpy_T mT movedim expand expand_as broadcast_to repeat tile "
    "repeat_interleave select unbind slice narrow chunk split split_with_sizes tensor_split "
    "unsafe_chunk unsafe_split flip roll cat concat concatenate stack index index_select dropout "
    "feature_dropout clone contiguous detach alias to _to_copy type_as float double half "
    "lift_fresh_copy positive neg negative copy linear matmul bmm mm mv einsum addmm baddbmm "
    "scaled_dot_product_attention avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d pad constant_pad_nd reflection_pad2d replication_pad2d channel_shuffle "
    "upsample_nearest1d upsample_nearest2d upsample_linear1d upsample_bilinear2d "
    "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa mean sum"
)
_HOMOGENEOUS_NAMES = (
    "relu leaky_relu abs absolute max_pool1d max_pool2d max_pool3d adaptive_max_pool2d"
)
_LINEAR = frozenset(_LINEAR_NAMES.split())
_HOMOGENEOUS = frozenset(_HOMOGENEOUS_NAMES.split())
_PRODUCTS = frozenset({"mul", "multiply", "div", "divide", "true_divide"})
_NORMS = frozenset({"layer_norm", "rms_norm", "_fused_rms_norm"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "convolution"})


def limit_maps(call: Call, node: fx.Node, result: Any, folded: frozenset[str]) -> None:
    """Record which kinds of maps one operator lets pass.

    `result` has the layouts of its results, `folded` the norms and products whose scale can be put
    into neighbouring layers.
    """
    name = call.operator
    reason = f"{name} lets no other maps pass"
    if name in _NORMS:
        _limit_norm(call, node.name in folded or call.get("weight") is None)
    elif name in SUMS:
        _limit_sum(call)
    elif name in _PRODUCTS:
        _limit_product(call, node.name in folded)
    elif name in _CONVOLUTIONS:
        _limit_convolution(call)
    elif name in ("mean", "sum"):
        _limit_lost(call)
    elif name == "prelu":
        _limit(call, [call["self"]], SCALED, reason)
        _limit(call, [call["weight"]], 0, reason)
    elif name in ("batch_norm", "_native_batch_norm_legit_no_training"):
        # The scale and shift go with what lies behind the norm, which is fresh units.
        behind = (call.get("weight"), call.get("bias"))
        _limit(call, [x for x in call.layouts if not any(x is one for one in behind)], 0, reason)
        _limit(call, layouts_in([result]), SCALED, reason)
    elif name in _HOMOGENEOUS:
        _limit(call, call.layouts, SCALED, reason)
    elif name not in _LINEAR or (name in ("pad", "constant_pad_nd") and call.get("value")):
        _limit(call, [*call.layouts, *layouts_in([result])], 0, reason)


def _limit(call: Call, layouts: Any, kinds: int, reason: str) -> None:
    for layout in layouts:
        for label in layout.labels:
            call.units.limit(label.ids, kinds, reason)


def _along(layout: Layout, dim: int) -> Iterator[Label]:
    """The labels along a dimension counted from the back."""
    if dim <= len(layout.dims):
        atoms = layout.dims[-dim]
        yield from (label for label in layout.labels if set(label.atoms) & set(atoms))


def _limit_norm(call: Call, folded: bool) -> None:
    x, weight = call["input"], call.get("weight")
    count = len(call["normalized_shape"])
    whole = folded and count == 1
    reason = (
        f"{call.operator} normalises it" if whole else f"the scale of {call.operator} is in its way"
    )
    for dim in range(1, count + 1):
        for label in _along(x, dim):
            times = np.unique(label.ids, return_counts=True)[1]
            whole &= set(label.atoms) <= set(x.dims[-dim]) and (times == times[0]).all()
            call.units.limit(label.ids, ORTHOGONAL if whole else 0, reason)
            if call.operator == "layer_norm":
                call.units.centred(label.ids)
    if weight is not None:
        _limit(call, [weight], 0, reason)


def _limit_sum(call: Call) -> None:
    layouts = [value for value in call.arguments.values() if isinstance(value, Layout)]
    number = next(
        (call.get(k) for k in ("other", "self") if not isinstance(call.get(k), Layout)), 0
    )
    for layout in layouts:
        for dim in range(1, len(layout.dims) + 1):
            for label in _along(layout, dim):
                shared = all(any(True for _ in _along(other, dim)) for other in layouts)
                if not shared or number:
                    call.units.limit(label.ids, 0, "a constant is added to it")


def _limit_product(call: Call, folded: bool) -> None:
    layouts = call.layouts
    for at, layout in enumerate(layouts):
        if not layout.is_data and len(layouts) > 1:
            _limit(call, [layout], 0, "it is a scale")
            continue
        others = [other for k, other in enumerate(layouts) if k != at]
        for dim in range(1, len(layout.dims) + 1):
            for label in _along(layout, dim):
                met = [o for o in others if any(True for _ in _along(o, dim))]
                if at and "div" in call.operator:
                    kinds = 0
                elif not met:
                    kinds = EVERY_KIND
                elif any(o.is_data for o in met):
                    kinds = 0
                else:
                    kinds = EVERY_KIND if folded else SCALED
                call.units.limit(label.ids, kinds, "each unit is multiplied on its own")


def _limit_convolution(call: Call) -> None:
    x, weight, groups = call["input"], call["weight"], call["groups"]
    if groups > 1 and weight.shape[1] == 1:
        one_each = weight.shape[0] == x.shape[1]
        kinds = SCALED if one_each else 0
        channels = [label for label in x.labels if set(label.atoms) & set(x.dims[1])]
        for label in channels:
            call.units.limit(
                label.ids, kinds, "a depthwise convolution filters each unit on its own"
            )
        _limit(call, [weight], 0, "it filters single units")


def _limit_lost(call: Call) -> None:
    """Units that are summed up are told apart no more."""
    x, dims = call["self"], call.get("dim")
    dims = range(len(x.dims)) if dims in (None, []) else [dims] if isinstance(dims, int) else dims
    gone = {atom for d in dims for atom in x.dims[dimension(x, d)]}
    for label in x.labels:
        if set(label.atoms) & gone:
            call.units.limit(label.ids, 0, f"{call.operator} adds them up")
