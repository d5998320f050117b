"""Regions of an exported graph (of autocast, of gradients) put in line with the rest of it."""

from torch import fx

_REGIONS = ("wrap_with_autocast", "wrap_with_set_grad_enabled")
# It checks precisions, which a run in float64 does not keep, and gives nothing.
_CHECK = "_assert_tensor_metadata"


def inline_regions(module: fx.GraphModule) -> None:
    """Replace calls of regions by what the regions hold, so that rules meet operators only.

    The graph is changed in place; numbers are the same but for the precision that a region
    of autocast sets. Checks of precision are left out.
    """
    graph = module.graph
    while calls := [node for node in graph.nodes if _name(node) in _REGIONS]:
        for call in calls:
            _inline(module, call)
    for node in list(graph.nodes):
        if _name(node) == _CHECK:
            graph.erase_node(node)


def _inline(module: fx.GraphModule, call: fx.Node) -> None:
    graph = module.graph
    at = next(
        index
        for index, value in enumerate(call.args)
        if isinstance(value, fx.Node)
        and value.op == "get_attr"
        and isinstance(getattr(module, str(value.target), None), fx.GraphModule)
    )
    region = call.args[at]
    assert isinstance(region, fx.Node)
    inner = getattr(module, str(region.target))
    inputs = [node for node in inner.graph.nodes if node.op == "placeholder"]
    values = dict(zip(inputs, call.args[at + 1 :], strict=True))
    for node in inner.graph.nodes:
        if node.op == "get_attr":
            name = f"{region.target}_{node.target}"
            setattr(module, name, getattr(inner, str(node.target)))
            node.target = name
    with graph.inserting_before(call):
        result = graph.graph_copy(inner.graph, values)
    if isinstance(result, fx.Node):
        call.replace_all_uses_with(result)
    else:
        for user in list(call.users):
            user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index, arg-type]
            graph.erase_node(user)
    graph.erase_node(call)
    if not region.users:
        graph.erase_node(region)


def _name(node: fx.Node) -> str:
    if node.op != "call_function":
        return ""
    name = getattr(node.target, "__name__", str(node.target))
    return name.removesuffix(".default")
