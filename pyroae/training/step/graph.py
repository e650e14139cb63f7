"""A function's tensor operations as a graph, run as they are or compiled by Inductor."""

import operator
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .static import Static


class Outputs(list):
    """What a traced function gives: tensors, or ``None`` in their place.

    Args:
        info: what is known of them without running the function, the same for all calls of a kind.
        valid: whether validation has found nothing wrong, where a graph has looked.
    """

    def __init__(self, tensors: Iterable[Tensor | None] = (), info: Any = None, valid: Tensor | None = None):
        super().__init__(tensors)
        self.info, self.valid = info, valid


class Graph:
    """The tensor operations of ``function()``, whose inputs are the tensors ``inputs``, wherever the function finds them.

    ``checked`` says whether validation has looked at values; then the last output is whether it found all of them valid.

    Raises:
        Exception: whatever the function raises, or torch where values decide what it does.
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

        with _one_fake_mode():
            module = make_fx(static)(*inputs)
        _refuse_changing_shapes(module.graph)  # also where only the shape was used, so that the operation seems unused
        _remove_unused(module.graph, any(tensor.is_cuda for tensor in inputs))
        self.module, self.constants = _lifted(module, len(inputs))

    def __call__(self, inputs: list[Tensor]) -> list:
        with torch.no_grad():
            return self.module(*inputs, *self.constants)

    def compiled(self, inputs: list[Tensor]) -> Callable[[list[Tensor]], list]:
        """The same by Inductor, with torch's own random numbers."""
        import torch._inductor

        with torch.no_grad():
            examples = [tensor.detach() for tensor in (*inputs, *self.constants)]
            fused = torch._inductor.compile(self.module, examples, options={"fallback_random": True})

        def run(inputs):
            with torch.no_grad():
                return fused(*inputs, *self.constants)

        return run

    def __len__(self) -> int:
        return len(self.module.graph.nodes)


def _one_fake_mode() -> AbstractContextManager:
    """Inside, ``make_fx`` describes every result by one fake mode; by itself it makes a mode for each, most of the time it takes."""
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode

    return tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))


def _remove_unused(graph: torch.fx.Graph, on_gpu: bool):
    """Remove operations whose results nobody uses, such as looks for NaN; not those that draw random numbers or write.

    On a GPU also the check of a decomposition such as Cholesky's, which would wait for it; what failed is NaN afterwards.
    """
    for node in reversed(graph.nodes):
        if on_gpu and node.target is torch.ops.aten._linalg_check_errors.default:
            graph.erase_node(node)
        elif node.op == "call_function" and not node.users and isinstance(node.target, torch._ops.OpOverload):
            kept = node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags
            if not kept and node.target._schema.returns:
                graph.erase_node(node)


def _refuse_changing_shapes(graph: torch.fx.Graph):
    """``ValueError`` for an operation whose result's shape depends on values: the graph would take this call's shape for good."""
    for node in graph.nodes:
        if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()) and not _by_position(node):
            raise ValueError(f"the shape that {node.target} gives depends on values")


def _by_position(node: torch.fx.Node) -> bool:
    """Whether it takes entries out by their positions, not by a mask."""
    if node.target is not torch.ops.aten.index.Tensor:
        return False
    return not any(i is not None and i.meta["val"].dtype in (torch.bool, torch.uint8) for i in node.args[1])


def _lifted(module: torch.fx.GraphModule, n: int) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """A graph whose further inputs are the tensors it had caught by reference (not those that the program writes out as numbers)."""
    graph, caught = module.graph, {}
    last = [node for node in graph.nodes if node.op == "placeholder"][-1] if n else None
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        if all(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users):
            continue
        if node.target not in caught:
            place = graph.inserting_after(last) if last else graph.inserting_before(next(iter(graph.nodes)))
            with place:
                last = caught[node.target] = graph.placeholder(node.target)
        node.replace_all_uses_with(caught[node.target])
        graph.erase_node(node)
    for node in graph.nodes:
        node.meta.clear()  # of many fake modes, which Inductor would refuse
    graph.set_codegen(torch.fx.graph.CodeGen())
    return torch.fx.GraphModule(module, graph), [operator.attrgetter(name)(module) for name in caught]
