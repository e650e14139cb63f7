"""A specialization of a traced function: calls that can share a graph; when it is built, run and compared with the program."""

import contextlib
import logging
import subprocess
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from . import background, building
from .arguments import Leaves
from .graph import Graph, Outputs
from .native import NativeError
from .proof import RTOL, is_power_of_two, results_agree
from .reach import Reach
from .signature import Signature
from .snapshot import Snapshot
from .static import number_input
from .timing import MIN_TIMED, CallTimes
from .updates import InvalidValuesError, Update
from .user_code import line_of

if TYPE_CHECKING:
    from .tracing import Traced

_LOG = logging.getLogger("pyroae")
LEVELS = ("eager", "traced", "compiled")


class Specialization(Signature):
    """Calls with one signature, and their current level: the program itself, its traced graph, or a compiled graph.

    ``graph`` is traced from the program alone; ``run`` is the callable of the current level; ``update`` is the optimizer's
    step if it is part of ``run``.
    """

    def __init__(self, owner: "Traced", leaves: Leaves, reach: Reach, times: CallTimes):
        super().__init__(leaves, reach, frozenset(owner.dynamic))
        self.owner, self.times = owner, times
        self.rows = leaves.tensors[0].shape[0] if leaves.tensors and leaves.tensors[0].dim() else 1
        self.level = self.runs = self.adoptions = 0
        self.graph: Graph | None = None
        self.run: Callable[[list[Tensor]], list] | None = None
        self.update: Update | None = None
        self.update_key: tuple | None = None
        self.info: Any = None  # of the program's outputs
        self.effects: list[int] = []  # reachable tensors that the program replaces
        self.has_run = self.finalized = self.proof_requested = False
        self.compiler: subprocess.Popen | None = None  # makes native code of the graph
        self.is_kept = False  # whether native code of the graph was kept by an earlier process
        self.written: list[int] = []  # arguments that the program modifies in place

    def refresh(self, reach: Reach | None = None):
        """As ``Signature.refresh``."""
        super().refresh(reach)
        self.is_on_device: bool | None = None  # computed on demand

    def adopt(self, new: Signature, leaves: Leaves) -> bool:
        """As ``Signature.adopt``; also requests a proof."""
        if not super().adopt(new, leaves):
            return False
        self.adoptions += 1
        self.proof_requested = self.proof_requested or self.adoptions == 1 or is_power_of_two(self.adoptions)
        return True

    # --- running ---

    def __call__(self, leaves: Leaves, args: tuple, kwargs: dict) -> Outputs:
        owner = self.owner
        if not self.has_run:
            return owner.apply_update(self.first_call(leaves, args, kwargs))
        if self.reach.refused or self.has_user_hook:
            if owner.mode != "eager":
                owner.fall_back(self.reach.refused or "a hook on a parameter runs at every call")
            return owner.run_eagerly(*args, **kwargs)
        has_gradients = bool(owner.update and owner.update.pending)  # which a step inside a graph does not add to its own
        if not has_gradients and self._should_advance() and not self._compiles_elsewhere(leaves):
            return self.advance_level(leaves, args, kwargs)
        if self.update and self.update.key(self.info) != self.update_key:  # the optimizer's settings have changed
            self.run, self.update, self.level = self.graph, None, 1
        if self.proof_due and not has_gradients:
            return self._run_and_prove(leaves, args, kwargs)
        self.proof_requested = self.proof_requested or self.proof_due
        return self._run_level(leaves, args, kwargs)

    @property
    def proof_due(self) -> bool:
        """Whether the next call also runs the program and compares."""
        return self.level > 0 and (self.proof_requested or is_power_of_two(self.runs + 1))

    def first_call(self, leaves: Leaves, args: tuple, kwargs: dict) -> Outputs:
        """Run the program: it creates its parameters; observe its modules and in-place writes."""
        self.times.excluded = True
        before = list(map(_version, leaves.tensors))
        with self.owner.observe():
            outputs = self.owner.function(*args, **kwargs)
        self.written = [i for i, tensor in enumerate(leaves.tensors) if _version(tensor) != before[i]]
        self.has_run = True
        self.refresh(self.owner.walk(self.objects))
        self._refuse_other_gradients(leaves)
        return outputs

    def _refuse_other_gradients(self, leaves: Leaves):
        """Refuse a graph if the program leaves gradients on tensors that are not parameters, for another optimizer."""
        arguments = (("an argument", tensor) for tensor in leaves.tensors)
        for path, tensor in [*zip(self.reach.tensor_paths, self.last_tensors), *arguments]:
            if tensor.is_leaf and tensor.requires_grad and tensor.grad is not None:
                self.reach.refuse(f"it leaves a gradient on {path}, which is no parameter of the optimizer")

    def _run_level(self, leaves: Leaves, args: tuple, kwargs: dict) -> Outputs:
        if not self.level or (self.update and self.update.pending):
            outputs = self.owner.run_eagerly(*args, **kwargs)
            if not self.reach.intact():  # the call has changed it
                self.owner.ignore_paths(self.reach.rewritten())
            return outputs
        return self.run_inputs(self.all_inputs(leaves), args, kwargs)

    def run_inputs(self, inputs: list[Tensor], args: tuple, kwargs: dict) -> Outputs:
        """Run the graph with these inputs of a call; the program runs if that fails."""
        checked = self.graph.checked and self.owner.update is not None and self.owner.update.sync
        random = torch.get_rng_state() if checked or LEVELS[self.level] == "compiled" else None
        try:
            self.runs += 1
            return self._apply_update(self._unpack_results(self.run(inputs)))
        except NativeError:
            torch.set_rng_state(random)
            return self.owner.run_eagerly(*args, **kwargs)  # raises the error of the operation that failed
        except (InvalidValuesError, torch.linalg.LinAlgError) as error:
            if not checked:
                raise
            torch.set_rng_state(random)
            raise InvalidValuesError from error

    def run_graph(self, leaves: Leaves) -> Outputs:
        """Run the graph and apply its effects."""
        return self._unpack_results(self.run(self.all_inputs(leaves)))

    def _apply_update(self, outputs: Outputs) -> Outputs:
        """Outputs of the graph, after the update."""
        if not self.update:
            return self.owner.apply_update(outputs)
        self.update.check(outputs)
        is_known = self.update.sync or outputs.valid is None  # whether the step has had an effect
        self.update.advance_counters(everywhere=is_known and not self.graph.has_none)
        return outputs

    def all_inputs(self, leaves: Leaves) -> list[Tensor]:
        """Current inputs of ``run``."""
        return self.inputs(leaves) + (self.update.tensors() if self.update else [])

    def inputs(self, leaves: Leaves) -> list[Tensor]:
        """Current inputs of the graph, without those of the update."""
        candidates = [*self.reach.tensors(), *leaves.tensors, *self.number_tensors(leaves)]
        for i in self.effects:
            candidates[i] = detach_provenance(candidates[i])
        return [candidates[i] for i in self.input_indices]

    def on_device(self, leaves: Leaves) -> bool:
        """Whether the graph reads and writes GPU memory only and replaces no tensor: a CUDA graph fixes addresses and CPU values."""
        if self.is_on_device is None:
            self.is_on_device = not self.effects and all(tensor.is_cuda for tensor in self.inputs(leaves))
        return self.is_on_device

    def number_tensors(self, leaves: Leaves) -> list[Tensor]:
        """Numbers that are inputs, as tensors."""
        values = [value for path, value in zip(self.arguments, leaves.numbers) if path in self.dynamic]
        return [number_input(value) for value in [*self.reach.numbers(), *values]]

    def _unpack_results(self, results: list) -> Outputs:
        n = len(results) - self.graph.checked
        outputs = Outputs(results[: n - len(self.effects)], self.info, results[-1] if self.graph.checked else None)
        for i, value in zip(self.effects, results[n - len(self.effects) : n]):
            self._rebind(i, value.detach())
        return outputs

    def _rebind(self, i: int, value: Tensor):
        """Replace a tensor in the program's attribute or in Pyro's store, as the program does."""
        holder, key = self.reach.tensor_slots[0][i], self.reach.tensor_slots[1][i]
        value.requires_grad_(self.last_tensors[i].requires_grad)
        store = pyro.get_param_store()
        if holder is store._params:
            store._param_to_name.pop(self.last_tensors[i], None)
            store._param_to_name[value] = key
        holder[key] = value
        self.replace_tensor(i, value)

    # --- levels ---

    def finalize(self) -> bool:
        """Whether the level will not change any more; decided once enough calls were timed."""
        is_timed = self.owner.mode == "auto" and self.level and self.times.timed >= MIN_TIMED
        self.finalized = self.finalized or bool(is_timed and not self._should_advance())
        return self.finalized

    def _should_advance(self) -> bool:
        if self.finalized or self.owner.mode == LEVELS[self.level]:
            return False
        if self.owner.mode != "auto" or self.compiler:
            return True
        return self.times.repays(LEVELS[self.level + 1], self.owner.remaining_calls(self.times), self.is_kept)

    def _compiles_elsewhere(self, leaves: Leaves) -> bool:
        """Whether another process makes the native code, which ``"auto"`` starts if there is a core to spare."""
        if self.owner.mode != "auto" or LEVELS[self.level + 1] != "compiled" or self.is_kept:
            return False
        if self.compiler is None:
            if background.is_busy():
                return True  # and this one after them
            self.times.excluded = True
            try:
                self.compiler = building.start_compiling(self, leaves, self._fusible())
            except Exception as error:  # noqa: BLE001  compiling here will give the reason
                _LOG.debug("compile: no other process compiles: %s", error)
            if self.compiler:
                self.owner.announce("elsewhere")
            return self.compiler is not None
        if background.is_running(self.compiler):
            return True
        self.compiler, self.is_kept = None, building.is_compiled(self, leaves, self._fusible())
        if not self.is_kept:
            self._reject("compiled", "the process that compiles it has failed")
        return not self.is_kept

    def advance_level(self, leaves: Leaves, args: tuple, kwargs: dict) -> Outputs:
        """Build the next level's graph, compare it with the current level, and use it if they agree."""
        name, owner, self.times.excluded = LEVELS[self.level + 1], self.owner, True
        owner.announce("loaded" if name == "compiled" and self.is_kept else name)
        fused = self._fusible() if name == "compiled" else None
        before = self.snapshot(leaves, fused)
        current, candidate = (self.run, self.update), None
        try:
            if name == "traced":
                while self._trace(leaves, args, kwargs):
                    before.restore()
                    before = self.snapshot(leaves, fused)
                self.run = self.graph
            else:
                self.run, self.update = building.compile_graph(self, leaves, fused), fused
                self.update_key = fused.key(self.info) if fused else None
            before.restore()
            candidate, new = (self.run, self.update), self._with_state(self.run_graph(leaves), fused)
            new_random = torch.get_rng_state()
        except Exception as error:  # a user's program or a compiler may raise anything; the program itself still runs
            failure = error
        before.restore()
        if candidate is None and name == "traced":
            self._finish_program(args, kwargs)
            before.restore()
        self.refresh()
        self.run, self.update = current
        if candidate is None:
            return self._build_failed(name, failure, leaves, args, kwargs)
        outputs = self.run_graph(leaves) if self.level else owner.function(*args, **kwargs)
        same_random = torch.equal(torch.get_rng_state(), new_random)
        old = [tensor if tensor is None or not fused else tensor.clone() for tensor in outputs]  # a step may change gradients in place
        if fused:
            outputs = owner.apply_update(outputs)
        if same_random and results_agree(self._with_state(old, fused), new, RTOL[name]):
            (self.run, self.update), self.level, self.runs = candidate, self.level + 1, 1
            if name == "traced":
                self.is_kept = building.is_compiled(self, leaves, self._fusible())
            self.times.start_level(len(self.graph))
            self.finalized = name in (owner.mode, LEVELS[-1])
        else:
            difference = "does not repeat it" if same_random else "draws other random numbers"
            self._reject(name, f"its graph {difference}; something in it is no tensor operation, or changes from call to call")
        return outputs if fused else owner.apply_update(outputs)

    def _fusible(self) -> Update | None:
        """The update, if it can be part of a compiled graph."""
        return self.owner.update if self.owner.update and self.owner.update.key(self.info) else None

    def _trace(self, leaves: Leaves, args: tuple, kwargs: dict) -> bool:
        """Trace the graph; whether it must be traced again, without library caches that the program has rewritten."""
        self.graph, self.input_indices, self.held, self.effects, self.info = building.trace(self, leaves, args, kwargs)
        return self.owner.ignore_paths(self.reach.rewritten())

    def snapshot(self, leaves: Leaves, update: Update | None) -> Snapshot:
        """State that a call may change, including arguments and the state of an update inside a graph."""
        arguments = [leaves.tensors[i] for i in self.written]
        return Snapshot(self.reach, [*arguments, *(update.mutated(self.info) if update else ())])

    def _finish_program(self, args: tuple, kwargs: dict):
        """Run a program that tracing has interrupted to its end, so that state of libraries, such as plates, is complete."""
        with warnings.catch_warnings(), contextlib.suppress(Exception):  # a later call raises and warns
            warnings.simplefilter("ignore")
            self.owner.function(*args, **kwargs)

    def _with_state(self, outputs: list[Tensor | None], fused: Update | None) -> list[Tensor | None]:
        """Outputs of a call; if the optimizer's step is in it the losses, and copies of the optimizer's state after it."""
        return [*outputs[: self.info.losses], *(tensor.clone() for tensor in fused.mutated(self.info))] if fused else outputs

    def _provable(self, outputs: Outputs) -> list[Tensor | None]:
        """What a proof compares: losses and gradients, or, if the optimizer's step is in the graph, losses and means of gradients."""
        return [*outputs[: self.info.losses], *(mean.clone() for mean in self.update.means())] if self.update else outputs

    def _build_failed(self, name: str, error: Exception, leaves: Leaves, args: tuple, kwargs: dict) -> Outputs:
        owner = self.owner
        numbers = self.dynamic & {*self.reach.number_paths, *self.arguments}
        if name == "traced" and numbers:  # they cannot be inputs: specialize on their values
            owner.fixed |= numbers
            owner.dynamic -= numbers
            owner.specializations.remove(self)
            owner.last = None
            return owner.specialization(leaves)(leaves, args, kwargs)
        line = line_of(error) if name == "traced" else None
        reason = str(error).strip().partition("\n")[0]
        reason = reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
        reason = "control flow that depends on a tensor's values" if "_local_scalar_dense" in reason else reason
        self._reject(name, f"{line}: {reason}" if line else reason)
        return self._run_level(leaves, args, kwargs)

    def _reject(self, name: str, reason: str):
        self.finalized = True
        self.owner.fall_back(reason, self.level, name)

    # --- proof ---

    def _run_and_prove(self, leaves: Leaves, args: tuple, kwargs: dict) -> Outputs:
        """Run program and graph from the same state; use the graph's result if they agree, otherwise fall back."""
        owner, self.proof_requested, self.times.excluded = self.owner, False, True
        before = self.snapshot(leaves, self.update)
        with owner.observe():
            expected = owner.function(*args, **kwargs)
        random = torch.get_rng_state()
        if self.update:
            self.update.tensors()
            self.update.traced_step(expected, None)  # of the optimizer only what is restored
        results = self._provable(expected)
        before.restore()
        self.runs += 1
        outputs = self.run_graph(leaves)
        same_random = torch.equal(torch.get_rng_state(), random)
        if same_random and expected.info == self.info and results_agree(results, self._provable(outputs), RTOL[LEVELS[self.level]]):
            return self._apply_update(outputs)
        before.restore()
        self.refresh()
        self.level, self.update, self.finalized = 0, None, True
        owner.fall_back(f"after {self.runs:,} calls its graph no longer repeats it; something that it reads has changed unnoticed")
        return owner.run_eagerly(*args, **kwargs)


def _version(tensor: Tensor) -> int:
    """Number of in-place writes to a tensor."""
    return 0 if tensor.is_inference() else tensor._version
