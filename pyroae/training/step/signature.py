"""Signatures of calls: the structure of the arguments, and everything that the programs can read."""

from operator import attrgetter, is_

from torch import Tensor

from .arguments import Leaves, layout
from .guards import is_library_hook
from .reach import Reach

_TENSOR = attrgetter("requires_grad", "_backward_hooks", "_post_accumulate_grad_hooks")


class Signature:
    """Calls that agree in everything that a graph fixes.

    Args:
        leaves: the arguments of one call.
        reach: what the programs can read.
        dynamic: paths of numbers that are inputs of the graph.
    """

    def __init__(self, leaves: Leaves, reach: Reach, dynamic: frozenset[str]):
        self.structure, self.objects, self.dynamic = leaves.structure, leaves.objects, dynamic
        self.arguments = {f"argument {i}": value for i, value in enumerate(leaves.numbers)}
        self.held: list[tuple[int, int]] = []  # tensors of the arguments that a graph reads where the programs hold them: their indices
        self.refresh(reach)

    def refresh(self, reach: Reach | None = None):
        """Record the current state of what the programs can read; optionally from a new walk."""
        self.reach = reach or self.reach
        self.last_tensors = self.reach.tensors()
        self.pointers, self.flags = list(map(Tensor.data_ptr, self.last_tensors)), list(map(_TENSOR, self.last_tensors))
        first: dict[int, int] = {}
        aliases = tuple(first.setdefault(id(tensor), i) for i, tensor in enumerate(self.last_tensors))
        self.metadata = (
            aliases,
            tuple((t.shape, t.dtype, t.device, t.requires_grad, layout(t), _has_user_hook(t)) for t in self.last_tensors),
        )
        self.has_user_hook = any(flags[-1] for flags in self.metadata[1])

    def matches(self, leaves: Leaves) -> bool:
        """Whether a call has this signature and the same tensors as the last one."""
        if leaves.structure != self.structure or not self.reach.intact() or not self._same_constants(leaves):
            return False
        try:
            tensors = self.reach.tensors()
        except (KeyError, IndexError, ValueError):  # one was removed
            return False
        if all(map(is_, tensors, self.last_tensors)) and self._same_held(leaves, tensors):
            return list(map(Tensor.data_ptr, tensors)) == self.pointers and list(map(_TENSOR, tensors)) == self.flags
        return False

    def adopt(self, new: "Signature", leaves: Leaves) -> bool:
        """Whether a new signature, of a call with those arguments, is equal but for replaced tensors and objects; then record its state."""
        if (new.structure, new.reach.signature, new.metadata) != (self.structure, self.reach.signature, self.metadata):
            return False
        if (
            not self._same_held(leaves, new.last_tensors)
            or self.dynamic != new.dynamic
            or any(self.arguments[path] != new.arguments[path] for path in self.constants())
        ):
            return False
        self.refresh(new.reach)
        return True

    def constants(self) -> set[str]:
        """Paths of numbers among the arguments that are constants of the graph."""
        return self.arguments.keys() - self.dynamic

    def _same_held(self, leaves: Leaves, tensors: list[Tensor]) -> bool:
        return all(leaves.tensors[i] is tensors[k] for i, k in self.held)

    def _same_constants(self, leaves: Leaves) -> bool:
        if not self.arguments:
            return True
        pairs = zip(self.arguments.items(), leaves.numbers, strict=True)
        return all(value == constant or path in self.dynamic for (path, constant), value in pairs)

    def differing_numbers(self, new: "Signature") -> set[str]:
        """Paths of numbers in which a new signature differs; none if it differs in anything else."""
        (ours, *rest), (theirs, *others) = self.reach.signature, new.reach.signature
        if self.structure != new.structure or self.metadata != new.metadata or rest != others or len(ours) != len(theirs):
            return set()
        differ = [(a, b) for a, b in zip(ours, theirs) if a != b]
        if any(a[0] != b[0] or a[1] is not b[1] or a[1] not in (int, float) for a, b in differ):
            return set()
        changed = {path for path, value in self.arguments.items() if value != new.arguments[path] and path not in self.dynamic}
        return changed | {a[0] for a, _ in differ}

    def first_difference(self, new: "Signature") -> str:
        """Path of the first difference from another signature."""
        if self.structure != new.structure:
            return "their arguments"
        pairs = zip(self.reach.fixed_paths, self.reach.values, new.reach.fixed_paths, new.reach.values)
        return next((p for p, a, q, b in pairs if p != q or a is not b), "the tensors that they read")

    def replace_tensor(self, i: int, tensor: Tensor):
        """Record that the program has replaced a tensor."""
        self.last_tensors[i], self.pointers[i], self.flags[i] = tensor, tensor.data_ptr(), _TENSOR(tensor)


def _has_user_hook(tensor: Tensor) -> bool:
    hooks = [*(tensor._backward_hooks or {}).values(), *((tensor._post_accumulate_grad_hooks or {}).values() if tensor.is_leaf else ())]
    return not all(map(is_library_hook, hooks))
