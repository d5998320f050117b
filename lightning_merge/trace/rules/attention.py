"""Rules of matrix products and attention: heads as wholes, units inside heads."""

from lightning_merge.trace import algebra
from lightning_merge.trace.layout import Layout, atom
from lightning_merge.trace.rules.rule_table import Call, Unsupported, roles_of_factors, rule

LETTERS = "abcdefghijklm"


def _broadcast(layouts: list[Layout]) -> list[Layout]:
    """Give all operands the same number of dimensions."""
    rank = max(len(layout.dims) for layout in layouts)
    return [x.with_dims(((),) * (rank - len(x.dims)) + x.dims) for x in layouts]


def _name_heads(call: Call, layout: Layout, name: str) -> None:
    """Name the units along the last dimension that belong to heads, and the heads."""
    for label in layout.labels:
        heads = [a for dim in layout.dims[:-2] for a in dim if a in label.atoms]
        if heads and any(a in label.atoms for a in layout.dims[-1]):
            call.units.name(label.ids, name)
            call.units.name(algebra.restrict(call.units, label, heads), "heads")


@rule("matmul", "bmm", "mm", "mv", "dot")
def matmul(call: Call) -> Layout:
    """Contract the last dimension of one operand with the last but one of the other."""
    left, right = call.layouts
    drop_left, drop_right = len(left.dims) == 1, len(right.dims) == 1
    if drop_left:
        left = left.with_dims(((), *left.dims))
    if drop_right:
        right = right.with_dims((*right.dims, ()))
    left, right = _broadcast([left, right])
    _name_heads(call, left, "qk")
    _name_heads(call, right, "v")
    batch = LETTERS[: len(left.dims) - 2]
    indices = [batch + "xy", batch + "yz"]
    roles_of_factors(call, [left, right], indices, batch + "xz")
    y = algebra.contract(call.units, [left, right], indices, batch + "xz", call.reason)
    dims = list(y.dims)
    if drop_right:
        dims.pop(-1)
    if drop_left:
        dims.pop(-1 if drop_right else -2)
    return y.with_dims(dims)


@rule("addmm", "baddbmm", "addbmm")
def addmm(call: Call) -> Layout:
    """A matrix product and a sum."""
    bias, left, right = call.layouts
    if call.operator == "addbmm":
        raise Unsupported
    batch = LETTERS[: len(left.dims) - 2]
    indices = [batch + "xy", batch + "yz"]
    roles_of_factors(call, [left, right], indices, batch + "xz")
    call.role(bias, len(bias.dims) - 1, "makes")
    y = algebra.contract(call.units, [left, right], indices, batch + "xz", call.reason)
    return algebra.elementwise(call.units, [bias, y], call.reason)


def _repeated(x: Layout, heads: int) -> Layout:
    """Grouped queries: several heads of the query read one head of the key."""
    copies = heads // x.shape[-3]
    shared = (*x.dims[-3], *atom(copies, uniform=True))
    return x.with_dims((*x.dims[:-3], shared, *x.dims[-2:]))


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Layout:
    """Tie the heads of query, key, value and mask, and the units of q and k inside them."""
    query, key, value = _broadcast([call["query"], call["key"], call["value"]])
    if call.get("enable_gqa"):
        key, value = (_repeated(x, query.shape[-3]) for x in (key, value))
    _name_heads(call, query, "qk")
    _name_heads(call, value, "v")
    batch = LETTERS[: len(query.dims) - 2]
    scores = algebra.contract(
        call.units, [query, key], [batch + "qd", batch + "kd"], batch + "qk", call.reason
    )
    if call.get("attn_mask") is not None:
        scores = algebra.elementwise(call.units, [scores, call["attn_mask"]], call.reason)
    algebra.reduce(call.units, scores, scores.dims[-1])
    return algebra.contract(
        call.units, [scores, value], [batch + "qk", batch + "kv"], batch + "qv", call.reason
    )
