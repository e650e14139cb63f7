"""A graph rewritten so that torch's kernels, which Inductor calls for products and random numbers, copy nothing.

``addmm`` first copies its bias to every row of the result. ``normal_`` becomes a function that clones its tensor. In a step of a
small network these copies take an eighth of the native code's time.
"""

import torch
from torch import fx

_aten = torch.ops.aten


def avoid_copies(graph: fx.Graph):
    """Rewrite a graph whose nodes have their values in ``meta``."""
    for node in list(graph.nodes):
        with graph.inserting_before(node):
            new = _sum_with_bias(node) or _noise(node)
        if new:
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    for node in reversed(graph.nodes):
        if node.target is _aten.empty.memory_format and not node.users:
            graph.erase_node(node)


def _sum_with_bias(node: fx.Node) -> fx.Node | None:
    """A product and, apart from it, a bias for each column; subtracted, since Inductor turns ``mm`` and ``add`` into ``addmm``.

    Not in lower precision, where the product would be rounded before the bias is added.
    """
    if node.target is not _aten.addmm.default or node.kwargs or node.args[0].meta["val"].dim() != 1:
        return None
    if node.meta["val"].dtype not in (torch.float32, torch.float64):
        return None
    bias, *factors = node.args
    product = node.graph.call_function(_aten.mm.default, tuple(factors))
    return node.graph.call_function(_aten.sub.Tensor, (product, node.graph.call_function(_aten.neg.default, (bias,))))


def _noise(node: fx.Node) -> fx.Node | None:
    """Standard Normal numbers in a new tensor, the same ones."""
    if node.target is not _aten.normal_.default or len(node.args) > 1 or node.kwargs:
        return None
    (empty,) = node.args
    if empty.target is not _aten.empty.memory_format or len(empty.users) > 1 or not empty.meta["val"].is_contiguous():
        return None
    value = empty.meta["val"]
    return node.graph.call_function(_aten.randn.default, (list(value.shape),), {"dtype": value.dtype, "device": value.device})
