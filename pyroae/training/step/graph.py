"""Graphs of a function's tensor operations, run with torch's kernels or compiled by Inductor."""

import operator
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .static import Static


class Outputs(list):
    """Outputs of a traced function: tensors or ``None``.

    Args:
        info: static information about them, equal for all calls of a specialization.
        valid: whether validation has succeeded, if a graph has checked it.
    """

    def __init__(self, tensors: Iterable[Tensor | None] = (), info: Any = None, valid: Tensor | None = None):
        super().__init__(tensors)
        self.info, self.valid = info, valid


def sum_of(tensors: list[Tensor]) -> Tensor | None:
    """The sum; ``None`` of none."""
    return sum(tensors[1:], tensors[0]) if tensors else None


def all_of(flags: list[Tensor | None]) -> Tensor | None:
    """Whether all flags that are there are true; ``None`` if none is."""
    present = [flag for flag in flags if flag is not None]
    return torch.stack(present).all() if present else None


class Graph:
    """The tensor operations of ``function()``; its inputs are ``inputs``, wherever the function reads them.

    ``checked``: whether validation has tested values; then the last output is whether all are valid.

    Raises:
        Exception: raised by the function, or by torch if control flow depends on values.
    """

    def __init__(self, function: Callable[[], list], inputs: list[Tensor]):
        from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

        self.checked = False

        def static(*_):
            with Static() as mode:
                outputs = function()
            valid = mode.valid()
            self.checked = valid is not None
            return [*outputs, valid] if self.checked else outputs

        with _shared_fake_mode():
            module = make_fx(static)(*inputs)
        _refuse_changing_shapes(module.graph)  # before unused operations are removed, because the shape may be used
        _remove_unused(module.graph, any(tensor.is_cuda for tensor in inputs))
        self.is_none = _remove_none(module.graph)
        self.has_none = any(self.is_none)
        self.module, self.constants = _lift_constants(module, len(inputs))

    def __call__(self, inputs: list[Tensor]) -> list:
        with torch.no_grad():
            return self.with_none(self.module(*inputs, *self.constants))

    def with_none(self, results: list[Tensor]) -> list:
        """The function's outputs from those of ``module``, which leaves out ``None``."""
        if len(results) == len(self.is_none):
            return results
        left = iter(results)
        return [None if is_none else next(left) for is_none in self.is_none]

    def __len__(self) -> int:
        return len(self.module.graph.nodes)


def _shared_fake_mode() -> AbstractContextManager:
    """Let ``make_fx`` use one fake mode for all results; otherwise it spends most of its time creating one per result."""
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode

    return tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))


def _remove_unused(graph: torch.fx.Graph, on_gpu: bool):
    """Remove operations with unused results, such as tests for NaN, except those that draw random numbers or write.

    On a GPU also error checks of decompositions such as Cholesky's, which synchronize; failed results are NaN.
    """
    for node in reversed(graph.nodes):
        if on_gpu and node.target is torch.ops.aten._linalg_check_errors.default:
            graph.erase_node(node)
        elif node.op == "call_function" and not node.users and isinstance(node.target, torch._ops.OpOverload):
            kept = node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags
            if not kept and node.target._schema.returns:
                graph.erase_node(node)


def _remove_none(graph: torch.fx.Graph) -> list[bool]:
    """Remove outputs that are ``None``; returns which ones are."""
    (node,) = graph.find_nodes(op="output")
    (outputs,) = node.args
    node.args = ([output for output in outputs if output is not None],)
    return [output is None for output in outputs]


def _refuse_changing_shapes(graph: torch.fx.Graph):
    """``ValueError`` for an operation with a shape that depends on values, which the graph would fix."""
    for node in graph.nodes:
        if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()) and not _by_position(node):
            raise ValueError(f"the shape that {node.target} gives depends on values")


def _by_position(node: torch.fx.Node) -> bool:
    """Whether an indexing operation uses positions and no mask."""
    if node.target is not torch.ops.aten.index.Tensor:
        return False
    return not any(i is not None and i.meta["val"].dtype in (torch.bool, torch.uint8) for i in node.args[1])


def _lift_constants(module: torch.fx.GraphModule, n: int) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """Turn tensors that the graph holds by reference into inputs, except literals of the program."""
    graph, lifted = module.graph, {}
    last = [node for node in graph.nodes if node.op == "placeholder"][-1] if n else None
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        if all(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users):
            continue
        if node.target not in lifted:
            place = graph.inserting_after(last) if last else graph.inserting_before(next(iter(graph.nodes)))
            with place:
                last = lifted[node.target] = graph.placeholder(node.target)
        node.replace_all_uses_with(lifted[node.target])
        graph.erase_node(node)
    for node in graph.nodes:
        node.meta.clear()  # of several fake modes, which Inductor does not accept
    graph.set_codegen(torch.fx.graph.CodeGen())
    return torch.fx.GraphModule(module, graph), [operator.attrgetter(name)(module) for name in lifted]
