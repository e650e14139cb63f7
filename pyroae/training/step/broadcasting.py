"""A graph rewritten so that functions of an expanded tensor are computed before it is expanded, once for each of its own entries.

Distributions expand their parameters to the shape of the data. Inductor would then compute, for example, the log-gamma of a parameter with
an entry for each column again in every row.
"""

import torch
from torch import Tensor, fx

_EXPAND, _AS_STRIDED = torch.ops.aten.expand.default, torch.ops.aten.as_strided.default
_COSTLY = {
    *("lgamma", "digamma", "polygamma", "erf", "erfc", "erfinv", "exp", "exp2", "expm1", "log", "log1p", "log2", "pow", "softplus"),
    *("sigmoid", "tanh", "sin", "cos", "atan2", "logaddexp"),
}


def compute_before_expanding(graph: fx.Graph):
    """Rewrite a graph whose nodes have their values in ``meta``."""
    for node in [_move(node) for node in list(graph.nodes) if _is_movable(node)]:
        if node.meta["costly"]:
            _store(node)
    for node in reversed(graph.nodes):
        if node.target is _EXPAND and not node.users:
            graph.erase_node(node)


def _is_movable(node: fx.Node) -> bool:
    """A function of single entries whose tensors are all expanded to the shape of its result, and fewer before."""
    if node.op != "call_function" or torch.Tag.pointwise not in getattr(node.target, "tags", ()) or node.target._schema.is_mutable:
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags or not isinstance(node.meta.get("val"), Tensor):
        return False
    shape = node.meta["val"].shape
    given = node.all_input_nodes
    return bool(given) and all(_is_expanded(each, shape) for each in given) and _shape_before(given).numel() < shape.numel()


def _is_expanded(node: fx.Node, shape: torch.Size) -> bool:
    return node.target is _EXPAND and node.meta["val"].shape == shape


def _shape_before(nodes: list[fx.Node]) -> torch.Size:
    return torch.broadcast_shapes(*(_source(node).meta["val"].shape for node in nodes))


def _source(node: fx.Node) -> fx.Node:
    """The tensor that is expanded, in one step or several."""
    while node.target is _EXPAND:
        node = node.args[0]
    return node


def _move(node: fx.Node) -> fx.Node:
    """Compute the function first, and expand its result."""
    value, small = node.meta["val"], {each: _source(each) for each in node.all_input_nodes}
    args, kwargs = (fx.map_arg(given, small.__getitem__) for given in (node.args, node.kwargs))
    values = (fx.map_arg(given, lambda each: each.meta["val"]) for given in (args, kwargs))
    with node.graph.inserting_before(node):
        first = node.graph.call_function(node.target, args, kwargs)
        then = node.graph.call_function(_EXPAND, (first, list(value.shape)))
    first.meta["val"] = node.target(*next(values), **next(values))
    name = node.target._schema.name.removeprefix("aten::")
    then.meta |= {"val": value, "costly": name in _COSTLY or any(each.meta.get("costly") for each in small)}
    node.replace_all_uses_with(then)
    node.graph.erase_node(node)
    return then


def _store(node: fx.Node):
    """As a view with strides, for which Inductor stores the small tensor; it would compute it with every entry of an expanded one."""
    if not node.users:
        return
    shape, small = node.meta["val"].shape, node.args[0].meta["val"]
    strides = [0] * (len(shape) - small.dim()) + [stride if size > 1 else 0 for size, stride in zip(small.shape, small.stride())]
    with node.graph.inserting_before(node):
        view = node.graph.call_function(_AS_STRIDED, (node.args[0], list(shape), strides, 0))
    view.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(view)
