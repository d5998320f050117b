"""Rules of the operators that rearrange entries: views, slices, joins and reductions."""

import numpy as np

from lightning_merge.trace import algebra
from lightning_merge.trace.layout import Atom, Layout, excuse, plain
from lightning_merge.trace.rules.rule_table import Call, Unsupported, dimension, rule
from lightning_merge.trace.units import Cause


@rule(
    *("reshape", "view", "flatten", "unflatten", "_unsafe_view", "reshape_as", "view_as"),
    *("squeeze", "unsqueeze"),
)
def reshape(call: Call) -> Layout:
    """Row-major regrouping of dimensions; those of size 1 come and go."""
    return algebra.reshape(call.units, call["self"], call.shape)


@rule("permute")
def permute(call: Call) -> Layout:
    """Dimensions in another order."""
    x = call["self"]
    return x.with_dims([x.dims[d] for d in call["dims"]])


@rule("transpose", "swapaxes", "swapdims")
def transpose(call: Call) -> Layout:
    """Two dimensions exchanged."""
    x = call["self"]
    first, second = (v for v in call.arguments.values() if isinstance(v, int))
    dims = list(x.dims)
    dims[first], dims[second] = dims[second], dims[first]
    return x.with_dims(dims)


@rule("t", "numpy_T", "mT", "adjoint")
def swap(call: Call) -> Layout:
    """The last two dimensions exchanged."""
    x = call.layouts[0]
    if len(x.dims) < 2:
        return x
    return x.with_dims((*x.dims[:-2], x.dims[-1], x.dims[-2]))


@rule("movedim")
def movedim(call: Call) -> Layout:
    """Dimensions moved to other places."""
    x = call["self"]
    source, target = call["source"], call["destination"]
    source = [dimension(x, d) for d in ([source] if isinstance(source, int) else source)]
    target = [dimension(x, d) for d in ([target] if isinstance(target, int) else target)]
    rest = [d for d in range(len(x.dims)) if d not in source]
    order = [
        source[target.index(place)] if place in target else rest.pop(0)
        for place in range(len(x.dims))
    ]
    return x.with_dims([x.dims[d] for d in order])


@rule("expand", "expand_as", "broadcast_to")
def expand(call: Call) -> Layout:
    """New entries are copies: uniform."""
    x = call["self"]
    padded = ((),) * (len(call.shape) - len(x.dims)) + x.dims
    dims = [
        dim if dim or size == 1 else (Atom(size, uniform=True),)
        for dim, size in zip(padded, call.shape, strict=True)
    ]
    return x.with_dims(dims)


@rule("repeat", "tile")
def repeat(call: Call) -> Layout:
    """Copies side by side along each dimension."""
    x = call["self"]
    padded = x.with_dims(((),) * (len(call.shape) - len(x.dims)) + x.dims)
    dims = [
        (Atom(new // max(old, 1), uniform=True), *dim) if new != old else dim
        for dim, old, new in zip(padded.dims, padded.shape, call.shape, strict=True)
    ]
    return padded.with_dims(dims)


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Layout:
    """Each entry followed by its copies."""
    x, count, dim = call["self"], call.get("repeats"), call.get("dim")
    if dim is None or not isinstance(count, int):
        raise Unsupported
    dims = list(x.dims)
    dims[dim] = (*dims[dim], Atom(count, uniform=True)) if count > 1 else dims[dim]
    return x.with_dims(dims)


@rule("select")
def select(call: Call) -> Layout:
    """One entry of a dimension."""
    x = call["self"]
    dim = dimension(x, call["dim"])
    return _entry(call, x, dim, call["index"] % x.shape[dim])


@rule("unbind")
def unbind(call: Call) -> list[Layout]:
    """Every entry of a dimension."""
    x = call["self"]
    dim = dimension(x, call["dim"])
    return [_entry(call, x, dim, index) for index in range(x.shape[dim])]


def _entry(call: Call, x: Layout, dim: int, index: int) -> Layout:
    taken = algebra.take(call.units, x, dim, np.array([index]))
    return taken.with_dims(taken.dims[:dim] + taken.dims[dim + 1 :])


@rule("slice", "narrow")
def slice_(call: Call) -> Layout:
    """A run of entries of a dimension."""
    x = call["self"]
    dim = dimension(x, call["dim"])
    size = x.shape[dim]
    if call.operator == "narrow":
        index = np.arange(call["start"], call["start"] + call["length"])
    else:
        index = np.arange(size)[slice(call.get("start"), call.get("end"), call.get("step"))]
    if len(index) == size:
        return x
    return algebra.take(call.units, x, dim, index)


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(call: Call) -> list[Layout]:
    """Consecutive runs; their sizes are those of the results."""
    x = call["self"]
    dim = dimension(x, call["dim"])
    pieces, start = [], 0
    for shape in call.shapes:
        index = np.arange(start, start + shape[dim])
        pieces.append(algebra.take(call.units, x, dim, index))
        start += shape[dim]
    return pieces


@rule("glu")
def glu(call: Call) -> Layout:
    """The first half of a dimension times what the second half lets through."""
    x = call["self"]
    dim = dimension(x, call["dim"])
    half = np.arange(x.shape[dim] // 2)
    halves = [algebra.take(call.units, x, dim, half + start) for start in (0, len(half))]
    return algebra.elementwise(call.units, halves, call.reason)


@rule("flip")
def flip(call: Call) -> Layout:
    """Dimensions in reverse."""
    x = call["self"]
    for dim in call["dims"]:
        x = algebra.take(call.units, x, dimension(x, dim), np.arange(x.shape[dim])[::-1])
    return x


@rule("roll")
def roll(call: Call) -> Layout:
    """Dimensions shifted in a circle."""
    x = call["self"]
    shifts, dims = call["shifts"], call["dims"]
    if not dims:
        raise Unsupported
    for shift, dim in zip(shifts, dims, strict=True):
        index = np.roll(np.arange(x.shape[dim]), shift)
        x = algebra.take(call.units, x, dimension(x, dim), index)
    return x


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Layout:
    """Segments along one dimension."""
    layouts = [x for x in call["tensors"] if len(x.dims) == len(call.shape)]
    return algebra.concatenate(call.units, layouts, dimension(layouts[0], call["dim"]), call.reason)


@rule("stack")
def stack(call: Call) -> Layout:
    """A new dimension."""
    dim = call["dim"] % len(call.shape)
    layouts = [x.with_dims((*x.dims[:dim], (), *x.dims[dim:])) for x in call["tensors"]]
    return algebra.concatenate(call.units, layouts, dim, call.reason)


@rule("pad", "constant_pad_nd")
def pad(call: Call) -> Layout:
    """Constant entries before and after: new units that are free, for all are equal."""
    x, amounts = call["self"], list(call["pad"])
    if call.get("mode") not in (None, "constant"):
        rank = len(x.dims)
        dims = [rank - 1 - i // 2 for i, amount in enumerate(amounts) if amount]
        atoms = [a for d in dims for a in x.dims[d]]
        x = algebra.freeze(call.units, x, atoms, "reflected at the border")
        return x.with_dims(
            [d if i not in dims else plain([call.shape[i]]).dims[0] for i, d in enumerate(x.dims)]
        )
    for place in range(len(amounts) // 2):
        dim = len(x.dims) - 1 - place
        before, after = amounts[2 * place : 2 * place + 2]
        if before < 0 or after < 0:
            size = x.shape[dim]
            index = np.arange(size)[max(-before, 0) : size - max(-after, 0)]
            x = algebra.take(call.units, x, dim, index)
        pieces = []
        for amount in (before, None, after):
            if amount is None:
                pieces.append(x)
            elif amount > 0:
                shape = [amount if d == dim else s for d, s in enumerate(x.shape)]
                pieces.append(plain(shape, uniform=True))
        if len(pieces) > 1:
            x = algebra.concatenate(call.units, pieces, dim, call.reason)
    return x


@rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "linalg_vector_norm", "norm")
def reduction(call: Call) -> Layout:
    """Sum over dimensions: what is left is indexed by blocks as wholes."""
    x, dims = call["self"], call.get("dim")
    dims = range(len(x.dims)) if dims in (None, []) else [dims] if isinstance(dims, int) else dims
    gone = {dimension(x, d) for d in dims}
    labels = algebra.reduce(call.units, x, [a for d in gone for a in x.dims[d]])
    keep = len(call.shape) == len(x.dims)
    kept = [() if d in gone else dim for d, dim in enumerate(x.dims) if keep or d not in gone]
    return Layout(tuple(kept), labels)


@rule("max", "min")
def maximum(call: Call) -> Layout | list[Layout]:
    """The largest entries; their positions have no place among units."""
    if call.get("other") is not None:
        return algebra.elementwise(call.units, call.layouts, call.reason)
    x, dim = call["self"], call.get("dim")
    result = reduction(call)
    if dim is None:
        return result
    algebra.freeze(call.units, x, x.dims[dim], "positions of the maximum are used")
    return [result, plain(call.shapes[1])]


@rule("softmax", "log_softmax", "normalize", "cumsum_like")
def softmax(call: Call) -> Layout:
    """Normalised over one dimension, whose units stay together."""
    x = call["self"]
    algebra.reduce(call.units, x, x.dims[dimension(x, call["dim"])])
    return x


@rule("std_mean", "var_mean")
def moments(call: Call) -> list[Layout]:
    """Two reductions in one."""
    result = reduction(call)
    return [result, result]


@rule("pixel_unshuffle", "pixel_shuffle")
def pixel(call: Call) -> Layout:
    """Space to channels and back."""
    x = call["self"]
    (b, c, h, w), (_, c2, h2, w2) = x.shape, call.shape
    if call.operator == "pixel_unshuffle":
        r = call["downscale_factor"]
        x = algebra.reshape(call.units, x, [b, c, h2, r, w2, r])
        x = x.with_dims([x.dims[d] for d in (0, 1, 3, 5, 2, 4)])
    else:
        r = call["upscale_factor"]
        x = algebra.reshape(call.units, x, [b, c2, r, r, h, w])
        x = x.with_dims([x.dims[d] for d in (0, 1, 4, 2, 5, 3)])
    return algebra.reshape(call.units, x, call.shape)


@rule("index")
def index(call: Call) -> Layout:
    """Entries gathered by tensors of positions: the gathered dimensions stay in place."""
    x, indices = call["self"], call["indices"]
    used = [d for d, one in enumerate(indices) if one is not None]
    for one in indices:
        if one is not None and one.labels:
            raise Unsupported
    if used != list(range(used[0], used[-1] + 1)):
        raise Unsupported
    return _gathered(call, x, used[0], used[-1] + 1)


@rule("index_select", "embedding")
def index_select(call: Call) -> Layout:
    """Rows gathered by position."""
    if call.operator == "embedding":
        x, dim = call["weight"], 0
        call.role(x, 1, "makes")
    else:
        x, dim = call["self"], dimension(call["self"], call["dim"])
    if call.layouts[-1].labels:
        raise Unsupported
    return _gathered(call, x, dim, dim + 1)


def _gathered(call: Call, x: Layout, start: int, end: int) -> Layout:
    """Entries by position instead of some dimensions, whose units are frozen."""
    atoms = [a for dim in x.dims[start:end] for a in dim]
    x = algebra.freeze(call.units, x, atoms, "gathered by position", Cause.GATHERED)
    before, rest = x.dims[:start], x.dims[end:]
    # Why there are no units along what is gathered, if there were any before.
    because = excuse([a for dim in x.dims[start:end] for a in dim])
    middle = plain(call.shape[start : len(call.shape) - len(rest)], because=because)
    return x.with_dims(before + middle.dims + rest)
