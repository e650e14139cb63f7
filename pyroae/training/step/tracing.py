"""Running a function's Python once: its tensor operations are kept as a graph, watched, proved, and compiled where that pays."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pyro import poutine
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

from ..options import Mode
from .arguments import Leaves
from .graph import Outputs
from .kind import LADDER, Kind
from .pace import EACH, SAMPLED, Budget, Pace, now
from .reach import Reach
from .updates import Update

_LOG = logging.getLogger("pyroae")
_KINDS = 8  # graphs kept, after which a function is taken to be different at every call
_PACES = 100  # structures of arguments whose calls are timed


class Traced:
    """A function of tensors whose Python runs once for each kind of call; afterwards only its tensor operations do.

    A kind of call is the structure of the arguments and every setting that the programs can read (``Reach``). Tensors are
    looked up at every call, so they may be replaced or changed in place. A number that changes becomes an input of the
    graph where the program allows it; otherwise each of its values is a kind. Random numbers are torch's own, in the same
    order. While no graph is worth making, ``"auto"`` tells calls apart by the structure of their arguments alone.

    A graph is proved: before it is first used, at its calls 2, 4, 8, ..., and when what it watches was replaced, the program
    runs beside it from the same random state. Where the two differ, or no graph can be made, the program goes on eagerly
    and the log says why, once.

    Args:
        function: gives ``Outputs``.
        roots: the programs and objects that the function reads.
        mode: ``"eager"``: never a graph. ``"traced"``: a graph of torch's own kernels, some 0.6 ms an operation to make, on
            a CPU the same to the bit. ``"compiled"``: fused by Inductor, in some 15 seconds. ``"auto"``: eager at first,
            then what the calls repay.
        calls: how many will come, where that is known. Otherwise a graph is made once the calls so far would have repaid
            it, and only where ``"auto"`` stays within 10% or 0.2 s of the eager program whenever the calls stop.
        update: what is done with the outputs of every call. It becomes a part of a compiled graph where it can.
        budget: shared with other functions of the same run.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        roots: Iterable[Any] = (),
        mode: Mode = "auto",
        calls: int | None = None,
        update: Update | None = None,
        budget: Budget | None = None,
    ):
        self.function, self.roots, self.mode, self.calls, self.update = function, list(roots), mode, calls, update
        self.done, self.budget = 0, budget or Budget()
        self.untimed = 0  # calls to come for which the last one stands
        self.paces: dict[tuple, Pace] = {}  # by the structure of the arguments
        self.kinds: list[Kind] = []
        self.last: Kind | None = None
        self.names: dict[str, None] = {}  # of parameters that the programs have asked Pyro's store for, in order
        self.ignored: set[str] = set()  # paths of what libraries rewrite whenever it is used
        self.dynamic: set[str] = set()  # paths of numbers that are inputs
        self.fixed: set[str] = set()  # paths of numbers that cannot be
        self.announce: Callable[[str], Any] = lambda name: None  # called before a graph is made, which takes its time

    def __call__(self, *args, **kwargs) -> Outputs:
        start, leaves = now(), self._leaves(args, kwargs)
        if leaves is None:
            return self.finished(self.function(*args, **kwargs))
        if self.mode != "auto":
            return self.kind(leaves)(leaves, args, kwargs)
        pace = self._pace(leaves.structure)
        kind = self.kind(leaves) if self._is_watched(pace) else None
        pace = kind.pace if kind else pace
        gpu = next((tensor.device for tensor in leaves.tensors if tensor.is_cuda), None)
        start = pace.begin(start, gpu)
        if kind:
            outputs = kind(leaves, args, kwargs)
        else:
            with pace.counting():
                outputs = self.function(*args, **kwargs)
            outputs = self.finished(outputs)
            if pace.done > SAMPLED:
                self.untimed = EACH - 1
        pace.end(start, gpu, 1 + self.untimed)
        return outputs

    def _leaves(self, args: tuple, kwargs: dict) -> Leaves | None:
        """The arguments of a call that is counted, timed or run as a graph; ``None`` where it is only run."""
        if self.mode == "eager" or handled():
            return None
        if self.untimed:
            self.untimed, self.done = self.untimed - 1, self.done + 1
            return None
        try:
            leaves = Leaves(args, kwargs)
        except ValueError as error:
            self.stay(str(error))
            return None
        self.done += 1
        return leaves

    def _pace(self, structure: tuple) -> Pace:
        if structure not in self.paces:
            if len(self.paces) >= _PACES:
                self.paces = {key: pace for key, pace in self.paces.items() if pace.watched}
            self.paces[structure] = Pace(self.budget)
        return self.paces[structure]

    def _is_watched(self, pace: Pace) -> bool:
        """Whether to look at all that such calls can read: once a graph of them is worth making."""
        if not pace.watched and len(self.kinds) < _KINDS:
            pace.watched = pace.repays(LADDER[1], self.left(pace))
        return pace.watched

    def finished(self, outputs: Outputs) -> Outputs:
        """The outputs, after the update."""
        return self.update(outputs) if self.update else outputs

    def eager(self, *args, **kwargs) -> Outputs:
        """A call without a graph, whatever the mode."""
        return self.finished(self.function(*args, **kwargs))

    def kind(self, leaves: Leaves) -> "Kind":
        """What handles such a call now."""
        if self.last is not None and self.last.fits(leaves):
            return self.last
        for each in self.kinds:
            if each is not self.last and each.fits(leaves):
                self.last = each
                return each
        self.last = self._walked(leaves)
        return self.last

    def settled(self, *args) -> "Kind | None":
        """What handles such a call, if that is a graph and will be to the end, all of it on the device, and no proof is due."""
        if self.mode == "eager" or handled():
            return None
        leaves = Leaves(args, {})
        kind = next((each for each in self.kinds if each.fits(leaves)), None)
        settled = kind and kind.settle() and kind.level and not kind.numbers_of(leaves) and kind.on_device(leaves)
        return kind if settled and not kind.proof_due else None

    def graphed(self, *args) -> Outputs:
        """A call of a settled kind: its graph alone, without the update."""
        leaves = Leaves(args, {})
        return self.kind(leaves).graphed(leaves)

    def left(self, pace: Pace) -> float | None:
        """How many calls like these are still to come, where that is known."""
        return None if self.calls is None else (self.calls - self.done) * pace.done / self.done

    def levels(self) -> list[tuple[int, int, int]]:
        """The rows of each kind of call that is watched, its level (0 is eager) and its calls as a graph."""
        return [(kind.rows, kind.level, kind.runs) for kind in self.kinds]

    def rebuild(self, level: int, runs: int, *args, **kwargs):
        """Rebuild the graph that calls of this kind had in the process that saved a checkpoint. It counts as no call."""
        if self.mode == "eager":
            return
        leaves = Leaves(args, kwargs)
        self._pace(leaves.structure).watched = True
        kind = self.kind(leaves)
        before = kind.snapshot(leaves, self.update)
        if not kind.seen:
            kind.first(leaves, args, kwargs)
            before.restore()
        while kind.level < level and not kind.settled:
            kind.climb(leaves, args, kwargs)
            before.restore()
        kind.runs = runs

    def stay(self, why: str, level: int = 0, verb: str = "traced"):
        """No call of another kind is tried again, and the reason is given once."""
        self.mode = LADDER[level]
        _LOG.warning("compile: the program cannot be %s and goes on %s: %s", verb, self.mode, why)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note the modules that the function calls, and the parameters that it asks Pyro's store for."""
        known = {id(root) for root in self.roots}

        def note(module: nn.Module, _):
            if id(module) not in known:
                known.add(id(module))
                self.roots.append(module)

        with nn.modules.module.register_module_forward_pre_hook(note), poutine.trace(param_only=True) as tape:
            yield
        self.names |= dict.fromkeys(tape.trace.nodes)

    def walk(self, objects: Iterable[Any] = ()) -> Reach:
        """Everything that the programs can read now."""
        return Reach([*self.roots, *objects], self.names, frozenset(self.dynamic), frozenset(self.ignored))

    def ignore(self, paths: set[str]) -> bool:
        """Watch no more what libraries rewrite whenever it is used; whether there is anything new among it."""
        new = not paths <= self.ignored
        self.ignored |= paths
        for kind in self.kinds if new else ():
            if not kind.level:
                kind.look(self.walk(kind.objects))
        return new

    def _walked(self, leaves: Leaves) -> "Kind":
        """The kind of a call that fits none as they were last seen: one of them after all, or a new one."""
        alike = [kind.pace for kind in self.kinds if kind.structure == leaves.structure]
        pace = Pace(self.budget, like=alike[0]) if alike else self.paces.get(leaves.structure) or Pace(self.budget)
        new = Kind(self, leaves, self.walk(leaves.objects), pace)
        for kind in self.kinds:
            if kind.take_over(new):
                return kind
        if changing := self._changing_numbers(new):
            self.dynamic |= changing
            replaced = [kind for kind in self.kinds if changing & kind.constants()]  # the new kind takes their calls
            self.kinds = [kind for kind in self.kinds if kind not in replaced]
            pace = max((kind.pace for kind in replaced if not kind.level), key=lambda pace: pace.done, default=pace)
            new = Kind(self, leaves, self.walk(leaves.objects), pace)
        if len(self.kinds) == _KINDS:
            where = self.kinds[-1].differs_in(new)
            self.stay(f"more than {_KINDS} kinds of call (shapes, settings, modes) have come, the last two differ in {where}")
            new.settled = True
            return new
        self.kinds.append(new)
        return new

    def _changing_numbers(self, new: "Kind") -> set[str]:
        """Numbers in which alone a call differs from one before, and that may be inputs."""
        for kind in reversed(self.kinds):
            differ = kind.differing_numbers(new)
            if differ and not differ & self.fixed:
                return differ
        return set()


def handled() -> bool:
    """Whether handlers of the caller's, such as ``poutine.scale``, are around the call; ``poutine.block`` changes nothing inside it."""
    return any(type(handler) is not BlockMessenger for handler in _PYRO_STACK)
