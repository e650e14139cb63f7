"""Graphs rewritten for Inductor, which computes some functions more often, or more slowly, than it has to, and copies more."""

import logging

import torch
from torch import Tensor, fx

from .broadcasting import compute_before_expanding
from .copies import avoid_copies
from .special import vectorize

_LOG = logging.getLogger("pyroae")
FILES = "rewriting", "broadcasting", "copies", "special"  # that say what is rewritten


def rewritten(module: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
    """A copy of the graph of ``module(*inputs)`` with the same results but for rounding; the module itself if that fails."""
    try:
        return _rewritten(module, inputs)
    except Exception as error:  # noqa: BLE001  whatever torch says of a graph that it compiles nevertheless
        _LOG.info("compile: the graph is compiled as it was traced (%s: %s)", type(error).__name__, error)
        return module


def _rewritten(module: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    found = fx.GraphModule(module, graph)
    with torch.no_grad():
        FakeTensorProp(found, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*inputs)
    for rewrite in (compute_before_expanding, vectorize, avoid_copies):
        rewrite(found.graph)
    for node in found.graph.nodes:
        node.meta.clear()
    found.recompile()
    return found
