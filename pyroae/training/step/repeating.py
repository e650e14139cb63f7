"""Further steps of one compiled graph, or of one CUDA graph, while nothing changes but the contents of the arguments."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from torch import Tensor

from ...objectives.base import Objective
from .arguments import Leaves
from .graph import Outputs
from .tracing import has_outer_handlers

if TYPE_CHECKING:
    from .recording import Recording
    from .specialization import Specialization
    from .svi import SVI


def repeat_of(svi: "SVI", args: tuple, replayed: "tuple[tuple[Specialization, ...], Recording] | None") -> "Repeat | Replay | None":
    """What repeats the step with ``args`` that was just taken; ``None`` if a part of it was not a graph.

    Args:
        svi: which took it.
        args: its arguments.
        replayed: the specializations of its micro-batches, and the CUDA graph that it was.
    """
    objective = svi.scheduled
    schedules, nested = (objective.schedules(), objective.nested()) if objective else ([], [])
    if any(type(each).advance is not Objective.advance for each in nested) or not all(
        type(each).__module__.startswith("pyroae.") for each in schedules
    ):
        return None  # somebody else's code runs after each step
    return Replay.of(*replayed, args) if replayed else Repeat.of(svi, args)


class Replay:
    """Replays of one CUDA graph, without what a call compares first; it holds as long as a ``Repeat`` does.

    Args:
        specs: the specialization of each micro-batch.
        recording: the graph.
        structure: that of the arguments.
    """

    def __init__(self, specs: "Iterable[Specialization]", recording: "Recording", structure: tuple):
        self.specs, self.recording, self.structure = frozenset(specs), recording, structure

    @classmethod
    def of(cls, specs: "tuple[Specialization, ...]", recording: "Recording", args: tuple) -> "Replay | None":
        """Replays of a step that was just taken; ``None`` if arguments are no tensors, or the programs hold one of them."""
        leaves = Leaves(args, {})
        is_simple = len(leaves.tensors) == len(args) and all(map(_are_read, specs, [args] * len(specs)))
        return cls(specs, recording, leaves.structure) if is_simple else None

    def __call__(self, args: tuple) -> Outputs | None:
        """As of a ``Repeat``."""
        try:
            if any(spec.proof_due for spec in self.specs) or Leaves(args, {}).structure != self.structure:
                return None
        except ValueError:
            return None
        for spec in self.specs:
            spec.runs += 1
        return own_losses(self.recording.replay(args))


def own_losses(outputs: Outputs) -> Outputs:
    """Losses in tensors that no replay overwrites."""
    return Outputs([loss.clone() for loss in outputs], outputs.info)


class Repeat:
    """Steps of a specialization whose optimizer's step is in its graph, without what a call compares first.

    It holds as long as no code runs that could change programs, settings or optimizer.

    Args:
        spec: the specialization of the step before.
        args, leaves: arguments of that step; those of further steps may differ in their contents.
        precision: context with the precision of matrix products.
    """

    def __init__(self, spec: "Specialization", args: tuple[Tensor, ...], leaves: Leaves, precision: AbstractContextManager):
        self.spec, self.precision = spec, precision
        self.inputs, self.places = spec.all_inputs(leaves), list(map(spec.input_indices.index, _indices(spec, args)))
        spec.update.assume_unchanged()

    @classmethod
    def of(cls, svi: "SVI", args: tuple) -> "Repeat | None":
        """What repeats the step with ``args`` that was just taken; ``None`` if that was no graph with the optimizer's step in it."""
        spec = svi._gradients.last
        if spec is None or not spec.update or spec.update.pending or not spec.finalize() or has_outer_handlers():
            return None
        leaves = Leaves(args, {})
        is_simple = leaves.structure == spec.structure and len(leaves.tensors) == len(args) and not spec.number_tensors(leaves)
        if not is_simple or spec.effects or spec.written or svi.options.precision == "bf16":
            return None
        if not _are_read(spec, args):
            return None
        return cls(spec, args, leaves, svi.precision_of(args))

    def __call__(self, args: tuple[Tensor, ...]) -> Outputs | None:
        """Outputs of a step; ``None``, and no step, if the arguments have another structure or a proof is due."""
        spec, inputs = self.spec, self.inputs
        try:
            if spec.proof_due or Leaves(args, {}).structure != spec.structure:
                return None
        except ValueError:  # an argument that no graph takes
            return None
        for place, tensor in zip(self.places, args):
            inputs[place] = tensor
        spec.update.next_numbers()  # in the same tensor
        spec.owner.done += 1
        with self.precision:
            return spec.run_inputs(inputs, args, {})


def _are_read(spec: "Specialization", args: tuple) -> bool:
    """Whether a graph reads the arguments where they are given, and not where the programs hold one of them themselves."""
    return {*_indices(spec, args)} <= {*spec.input_indices}


def _indices(spec: "Specialization", args: tuple) -> range:
    """Indices of the arguments among the tensors that a graph may read."""
    first = len(spec.reach.tensor_paths)
    return range(first, first + len(args))
