"""Further steps of one compiled graph, while nothing changes but the contents of the arguments."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .arguments import Leaves
from .graph import Outputs

if TYPE_CHECKING:
    from .specialization import Specialization


class Repeat:
    """Steps of a specialization whose optimizer's step is in its graph, without what a call compares first.

    It holds as long as no code runs that could change programs, settings or optimizer.

    Args:
        spec: the specialization of the step before.
        args: arguments of that step; those of further steps may differ in their contents.
        precision: context with the precision of matrix products.
    """

    def __init__(self, spec: "Specialization", args: tuple[Tensor, ...], precision: AbstractContextManager):
        self.spec, self.precision, self.layout = spec, precision, list(map(_layout, args))
        self.inputs = spec.all_inputs(Leaves(args, {}))
        first = len(spec.reach.tensor_paths)  # index of the first argument
        self.places = [spec.input_indices.index(first + i) for i in range(len(args))]

    def __call__(self, args: tuple[Tensor, ...]) -> Outputs | None:
        """Outputs of a step; ``None``, and no step, if the arguments have another layout or a proof is due."""
        spec, inputs = self.spec, self.inputs
        if spec.proof_due or list(map(_layout, args)) != self.layout:
            return None
        for place, tensor in zip(self.places, args):
            inputs[place] = tensor
        inputs[len(spec.input_indices)] = spec.update.next_numbers()
        spec.owner.done += 1
        with self.precision:
            return spec.run_inputs(inputs, args, {})


def _layout(argument: Any) -> tuple:
    return argument.shape, argument.dtype, argument.is_contiguous()
