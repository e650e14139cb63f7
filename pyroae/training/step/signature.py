"""What calls have in common: the structure of their arguments, and all that the programs can read."""

from operator import attrgetter, is_

from torch import Tensor

from .arguments import Leaves, layout
from .reach import Reach
from .watching import is_library_hook

_TENSOR = attrgetter("requires_grad", "_backward_hooks", "_post_accumulate_grad_hooks")


class Signature:
    """Calls between which nothing differs that a graph takes for fixed.

    Args:
        leaves: the arguments of one of them.
        reach: what the programs can read.
        dynamic: paths of the numbers that are inputs of the graph.
    """

    def __init__(self, leaves: Leaves, reach: Reach, dynamic: frozenset[str]):
        self.structure, self.objects, self.dynamic = leaves.structure, leaves.objects, dynamic
        self.arguments = {f"argument {i}": value for i, value in enumerate(leaves.numbers)}
        self.look(reach)

    def look(self, reach: Reach | None = None):
        """Remember what the programs can read, by default from the same places."""
        self.reach = reach or self.reach
        self.known = self.reach.tensors()
        self.pointers, self.flags = list(map(Tensor.data_ptr, self.known)), list(map(_TENSOR, self.known))
        first: dict[int, int] = {}
        same = tuple(first.setdefault(id(tensor), i) for i, tensor in enumerate(self.known))
        self.about = same, tuple((t.shape, t.dtype, t.device, t.requires_grad, layout(t), _hooked(t)) for t in self.known)

    def fits(self, leaves: Leaves) -> bool:
        """Whether a call is one of these, and everything is where it was last seen."""
        if leaves.structure != self.structure or not self.reach.intact() or not self._fixed_arguments(leaves):
            return False
        try:
            tensors = self.reach.tensors()
        except (KeyError, IndexError, ValueError):  # one was removed
            return False
        if all(map(is_, tensors, self.known)):
            return list(map(Tensor.data_ptr, tensors)) == self.pointers and list(map(_TENSOR, tensors)) == self.flags
        return False

    def take_over(self, new: "Signature") -> bool:
        """Whether a call that was looked at anew is one of these; then it is remembered as it is now."""
        if (new.structure, new.reach.signature, new.about) != (self.structure, self.reach.signature, self.about):
            return False
        if self.dynamic != new.dynamic or any(self.arguments[path] != new.arguments[path] for path in self.constants()):
            return False
        self.look(new.reach)
        return True

    def constants(self) -> set[str]:
        """The paths of those numbers among the arguments that its graph holds as constants."""
        return self.arguments.keys() - self.dynamic

    def _fixed_arguments(self, leaves: Leaves) -> bool:
        if not self.arguments:
            return True
        return all(
            value == known or path in self.dynamic for (path, known), value in zip(self.arguments.items(), leaves.numbers, strict=True)
        )

    def differing_numbers(self, new: "Signature") -> set[str]:
        """The paths of the numbers in which other calls differ; none where they differ in anything else."""
        (ours, *rest), (theirs, *others) = self.reach.signature, new.reach.signature
        if self.structure != new.structure or self.about != new.about or rest != others or len(ours) != len(theirs):
            return set()
        differ = [(a, b) for a, b in zip(ours, theirs) if a != b]
        if any(a[0] != b[0] or a[1] is not b[1] or a[1] not in (int, float) for a, b in differ):
            return set()
        changed = {path for path, value in self.arguments.items() if value != new.arguments[path] and path not in self.dynamic}
        return changed | {a[0] for a, _ in differ}

    def differs_in(self, new: "Signature") -> str:
        """The path of the first thing in which other calls differ."""
        if self.structure != new.structure:
            return "their arguments"
        pairs = zip(self.reach.fixed_paths, self.reach.values, new.reach.fixed_paths, new.reach.values)
        return next((p for p, a, q, b in pairs if p != q or a is not b), "what they hold")

    def remember(self, i: int, tensor: Tensor):
        """The ``i``-th tensor was replaced, as the program itself does."""
        self.known[i], self.pointers[i], self.flags[i] = tensor, tensor.data_ptr(), _TENSOR(tensor)


def _hooked(tensor: Tensor) -> bool:
    hooks = [*(tensor._backward_hooks or {}).values(), *((tensor._post_accumulate_grad_hooks or {}).values() if tensor.is_leaf else ())]
    return not all(map(is_library_hook, hooks))
