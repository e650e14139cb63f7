"""Tracing a function once into a graph of tensor operations, which is guarded, proved, and compiled if that pays."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pyro import poutine
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

from ...memory import keep_freed_memory
from ..options import Mode
from . import native
from .arguments import Leaves
from .graph import Outputs
from .reach import Reach
from .specialization import LEVELS, Specialization
from .timing import MIN_TIMED, SAMPLE_AFTER, SAMPLE_EVERY, CallTimes, TimeBudget, clock
from .updates import Update

_LOG = logging.getLogger("pyroae")
_MAX_SPECIALIZATIONS = 8  # after which a function is assumed to be different in every call
_MAX_STRUCTURES = 100  # structures of arguments whose calls are timed


class Traced:
    """A function of tensors whose Python runs once per specialization; afterwards only its tensor operations run.

    A specialization is the structure of the arguments and all settings that the programs can read (``Reach``). Tensors are
    read at every call, so they may be replaced or changed in place. A number that changes becomes an input of the
    graph if the program permits; otherwise each of its values is a specialization. Random numbers are torch's, in the same
    order. Until a graph is worthwhile, ``"auto"`` distinguishes calls only by the structure of their arguments.

    A graph is proved: before its first use, at its calls 2, 4, 8, ..., and when an object that it depends on was replaced,
    the program also runs, from the same random state. If the results differ, or no graph can be built, the function runs
    eagerly from then on, and the reason is logged once.

    Args:
        function: returns ``Outputs``.
        roots: the programs and objects that the function reads.
        mode: ``"eager"``: never a graph. ``"traced"``: a graph of torch's own kernels, about 0.6 ms per operation to build, on
            a CPU equal bit for bit. ``"compiled"``: compiled by Inductor, in about 15 seconds. ``"auto"``: eager at first,
            then the level that repays its cost.
        calls: number of calls to come, if known. Otherwise a graph is built once the calls so far would have repaid
            it, and only if ``"auto"`` stays within 10% or 0.2 s of the eager program whenever the calls stop.
        update: applied to the outputs of every call; part of a compiled graph if possible.
        budget: shared with other functions of the same run.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        roots: Iterable[Any] = (),
        mode: Mode = "auto",
        calls: int | None = None,
        update: Update | None = None,
        budget: TimeBudget | None = None,
    ):
        keep_freed_memory()
        self.function, self.roots, self.mode, self.calls, self.update = function, list(roots), mode, calls, update
        self.done, self.budget = 0, budget or TimeBudget()
        self.times: dict[tuple, CallTimes] = {}  # by structure of the arguments
        self.specializations: list[Specialization] = []
        self.last: Specialization | None = None
        self.param_names: dict[str, None] = {}  # of entries of Pyro's store that the programs have used, in order
        self.ignored: set[str] = set()  # paths of library caches
        self.dynamic: set[str] = set()  # paths of numbers that are inputs
        self.fixed: set[str] = set()  # paths of numbers that cannot be inputs
        self.announce: Callable[[str], Any] = lambda name: None  # called before a graph is built

    def __call__(self, *args, **kwargs) -> Outputs:
        start, leaves = clock(), self._leaves(args, kwargs)
        if leaves is None:
            self.last = None
            return self.apply_update(self.function(*args, **kwargs))
        if self.mode != "auto":
            return self.specialization(leaves)(leaves, args, kwargs)
        times = self._times(leaves.structure)
        if times.represented:
            times.represented, self.last = times.represented - 1, None
            return self.apply_update(self.function(*args, **kwargs))
        spec = self.specialization(leaves) if self._is_tracked(times) else None
        times = spec.times if spec else times
        gpu = next((tensor.device for tensor in leaves.tensors if tensor.is_cuda), None)
        start = times.begin(start, gpu)
        if spec:
            outputs = spec(leaves, args, kwargs)
        else:
            self.last = None
            with times.counting():
                outputs = self.function(*args, **kwargs)
            outputs = self.apply_update(outputs)
            if times.done == MIN_TIMED:
                times.was_seen = native.was_seen(self.described(leaves.structure, outputs.info))
            if times.done > SAMPLE_AFTER:
                times.represented = SAMPLE_EVERY - 1
        times.end(start, gpu, 1 + times.represented)
        return outputs

    def _leaves(self, args: tuple, kwargs: dict) -> Leaves | None:
        """Arguments of a call that is timed or run as a graph; ``None`` if it is only run."""
        if self.mode == "eager" or has_outer_handlers():
            return None
        try:
            leaves = Leaves(args, kwargs)
        except ValueError as error:
            self.fall_back(str(error))
            return None
        self.done += 1
        return leaves

    def _times(self, structure: tuple) -> CallTimes:
        if structure not in self.times:
            if len(self.times) >= _MAX_STRUCTURES:
                self.times = {key: times for key, times in self.times.items() if times.tracked}
            self.times[structure] = CallTimes(self.budget)
        return self.times[structure]

    def _is_tracked(self, times: CallTimes) -> bool:
        """Whether to walk everything that such calls can read: once a graph is worthwhile."""
        if not times.tracked and len(self.specializations) < _MAX_SPECIALIZATIONS:
            times.tracked = times.repays(LEVELS[1], self.remaining_calls(times))
        return times.tracked

    def described(self, structure: tuple, info: Any) -> str:
        """What calls have in common in all processes, known without tracing: structure of the arguments and shapes of parameters."""
        return f"{structure} {[tuple(each.shape) for each in self.update.parameters(info)]}" if self.update else ""

    def apply_update(self, outputs: Outputs) -> Outputs:
        """Outputs after the update."""
        return self.update(outputs) if self.update else outputs

    def run_eagerly(self, *args, **kwargs) -> Outputs:
        """A call without a graph, in any mode."""
        return self.apply_update(self.function(*args, **kwargs))

    def specialization(self, leaves: Leaves) -> Specialization:
        """The specialization of a call."""
        if self.last is not None and self.last.matches(leaves):
            return self.last
        for spec in self.specializations:
            if spec is not self.last and spec.matches(leaves):
                self.last = spec
                return spec
        self.last = self._after_walk(leaves)
        return self.last

    def finalized(self, *args) -> Specialization | None:
        """The specialization of a call if it is a graph on the device, will not change any more, and no proof is due."""
        if self.mode == "eager" or has_outer_handlers():
            return None
        leaves = Leaves(args, {})
        spec = next((spec for spec in self.specializations if spec.matches(leaves)), None)
        is_final = spec and spec.finalize() and spec.level and not spec.number_tensors(leaves) and spec.on_device(leaves)
        return spec if is_final and not spec.proof_due else None

    def run_graph(self, *args) -> Outputs:
        """Run the graph of a finalized specialization, without the update."""
        leaves = Leaves(args, {})
        return self.specialization(leaves).run_graph(leaves)

    def remaining_calls(self, times: CallTimes) -> float | None:
        """Estimated number of such calls to come; ``None`` if the total is unknown."""
        return None if self.calls is None else (self.calls - self.done) * times.done / self.done

    def levels(self) -> list[tuple[int, int, int]]:
        """Rows, level (0 is eager) and runs of the graph of each specialization."""
        return [(spec.rows, spec.level, spec.runs) for spec in self.specializations]

    def rebuild(self, level: int, runs: int, *args, **kwargs):
        """Rebuild the graph that such calls had when a checkpoint was saved; not counted as a call."""
        if self.mode == "eager":
            return
        leaves = Leaves(args, kwargs)
        self._times(leaves.structure).tracked = True
        spec = self.specialization(leaves)
        before = spec.snapshot(leaves, self.update)
        if not spec.has_run:
            spec.first_call(leaves, args, kwargs)
            before.restore()
        while spec.level < level and not spec.finalized:
            spec.advance_level(leaves, args, kwargs)
            before.restore()
        spec.runs = runs

    def forget(self):
        """Discard all graphs, and what is known of calls."""
        self.times, self.specializations, self.last = {}, [], None

    def fall_back(self, reason: str, level: int = 0, verb: str = "traced"):
        """Build no more graphs above ``level``, and log the reason."""
        self.mode = LEVELS[level]
        _LOG.warning("compile: the program cannot be %s and stays %s: %s", verb, self.mode, reason)

    @contextlib.contextmanager
    def observe(self) -> Iterator[None]:
        """Record modules that the function calls, and entries of Pyro's store that it uses."""
        known = {id(root) for root in self.roots}

        def record(module: nn.Module, _):
            if id(module) not in known:
                known.add(id(module))
                self.roots.append(module)

        with nn.modules.module.register_module_forward_pre_hook(record), poutine.trace(param_only=True) as tape:
            yield
        self.param_names |= dict.fromkeys(tape.trace.nodes)

    def walk(self, objects: Iterable[Any] = ()) -> Reach:
        """Everything that the programs can read now."""
        return Reach([*self.roots, *objects], self.param_names, frozenset(self.dynamic), frozenset(self.ignored))

    def ignore_paths(self, paths: set[str]) -> bool:
        """Ignore library caches; whether any of them is new."""
        is_new = not paths <= self.ignored
        self.ignored |= paths
        for spec in self.specializations if is_new else ():
            if not spec.level:
                spec.refresh(self.walk(spec.objects))
        return is_new

    def _after_walk(self, leaves: Leaves) -> Specialization:
        """The specialization of a call that matches none: an existing one whose objects were replaced, or a new one."""
        same_structure = [spec.times for spec in self.specializations if spec.structure == leaves.structure]
        if same_structure:
            times = CallTimes(self.budget, like=same_structure[0])
        else:
            times = self.times.get(leaves.structure) or CallTimes(self.budget)
        new = Specialization(self, leaves, self.walk(leaves.objects), times)
        for spec in self.specializations:
            if spec.adopt(new, leaves):
                return spec
        if changing := self._changing_numbers(new):
            self.dynamic |= changing
            replaced = [spec for spec in self.specializations if changing & spec.constants()]  # superseded by the new one
            self.specializations = [spec for spec in self.specializations if spec not in replaced]
            times = max((spec.times for spec in replaced if not spec.level), key=lambda times: times.done, default=times)
            new = Specialization(self, leaves, self.walk(leaves.objects), times)
        if len(self.specializations) == _MAX_SPECIALIZATIONS:
            path = self.specializations[-1].first_difference(new)
            self.fall_back(
                f"more than {_MAX_SPECIALIZATIONS} specializations (shapes, settings, modes) are needed; the last two differ in {path}"
            )
            new.finalized = True
            return new
        self.specializations.append(new)
        return new

    def _changing_numbers(self, new: Specialization) -> set[str]:
        """Numbers that may be inputs, if a call differs from an earlier one only in them."""
        for spec in reversed(self.specializations):
            differ = spec.differing_numbers(new)
            if differ and not differ & self.fixed:
                return differ
        return set()


def has_outer_handlers() -> bool:
    """Whether the call is inside handlers such as ``poutine.scale``; ``poutine.block`` has no effect inside it."""
    return any(type(handler) is not BlockMessenger for handler in _PYRO_STACK)
