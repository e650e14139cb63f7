"""One kind of call of a traced function: when it is made a graph, how the graph is run, watched and proved."""

import contextlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyro
import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from .arguments import Leaves, replaced
from .graph import Graph, Outputs
from .pace import LOOKS, Pace
from .proof import ROUNDING, agree, is_power_of_two
from .reach import Reach
from .signature import Signature
from .snapshot import Snapshot, python_random
from .static import as_input
from .updates import InvalidValuesError, Update
from .user_code import drawing_line, line_of

if TYPE_CHECKING:
    from .tracing import Traced

LADDER = ("eager", "traced", "compiled")


class Kind(Signature):
    """Calls of one kind, and what runs them now."""

    def __init__(self, owner: "Traced", leaves: Leaves, reach: Reach, pace: Pace):
        super().__init__(leaves, reach, frozenset(owner.dynamic))
        self.owner, self.pace = owner, pace
        self.rows = leaves.tensors[0].shape[0] if leaves.tensors and leaves.tensors[0].dim() else 1
        self.level = self.runs = self.moves = 0
        self.graph: Graph | None = None  # of the function alone
        self.run: Callable[[list[Tensor]], list] | None = None
        self.update: Update | None = None  # where it is a part of what runs
        self.update_kind: tuple | None = None
        self.info, self.effects, self.seen, self.settled, self.prove = None, [], False, False, False
        self.written: list[int] = []  # arguments that the program writes into

    def look(self, reach: Reach | None = None):
        """As ``Signature.look``."""
        super().look(reach)
        self.is_on_device: bool | None = None  # not known yet

    def take_over(self, new: Signature) -> bool:
        """As ``Signature.take_over``; the graph is proved again."""
        if not super().take_over(new):
            return False
        self.moves += 1
        self.prove = self.prove or self.moves == 1 or is_power_of_two(self.moves)
        return True

    # --- running it ---

    def __call__(self, leaves: Leaves, args: tuple, kwargs: dict) -> Outputs:
        owner = self.owner
        if not self.seen:
            return owner.finished(self.first(leaves, args, kwargs))
        if self.reach.refused or any(flags[-1] for flags in self.about[1]):
            if owner.mode != "eager":
                owner.stay(self.reach.refused or "a hook on a parameter runs at every call")
            return owner.eager(*args, **kwargs)
        if self._worth_climbing():
            return self.climb(leaves, args, kwargs)
        if self.update and self.update.kind(self.info) != self.update_kind:  # the optimizer does something else now
            self.run, self.update, self.level = self.graph, None, 1
        if self.proof_due:
            return self._proved(leaves, args, kwargs)
        return self._whole(leaves, args, kwargs)

    @property
    def proof_due(self) -> bool:
        """Whether the program runs beside the graph in the next call."""
        return self.level > 0 and (self.prove or is_power_of_two(self.runs + 1))

    def first(self, leaves: Leaves, args: tuple, kwargs: dict) -> Outputs:
        """The first call is the program itself: it makes its parameters, and shows which modules it calls and where it writes."""
        self.pace.unusual = True
        before = list(map(_version, leaves.tensors))
        with self.owner.watching():
            outputs = self.owner.function(*args, **kwargs)
        self.written = [i for i, tensor in enumerate(leaves.tensors) if _version(tensor) != before[i]]
        self.seen = True
        self.look(self.owner.walk(self.objects))
        self._find_outside(leaves)
        return outputs

    def _find_outside(self, leaves: Leaves):
        """Refuse a graph where the program leaves gradients on tensors that are no parameters, for somebody else's optimizer."""
        for path, tensor in [*zip(self.reach.tensor_paths, self.known), *(("an argument", tensor) for tensor in leaves.tensors)]:
            if tensor.is_leaf and tensor.requires_grad and tensor.grad is not None:
                self.reach.refuse(f"it leaves a gradient on {path}, which is no parameter of the optimizer")

    def _whole(self, leaves: Leaves, args: tuple, kwargs: dict) -> Outputs:
        if not self.level or (self.update and self.update.pending):
            outputs = self.owner.eager(*args, **kwargs)
            if not self.reach.intact():  # it was just before the call
                self.owner.ignore(self.reach.rewritten())
            return outputs
        checked = self.graph.checked and self.owner.update is not None and self.owner.update.sync
        random = torch.get_rng_state() if checked else None
        try:
            self.runs += 1
            return self._finished(self.graphed(leaves))
        except (InvalidValuesError, torch.linalg.LinAlgError) as error:
            if random is None:
                raise
            torch.set_rng_state(random)
            raise InvalidValuesError from error

    def graphed(self, leaves: Leaves) -> Outputs:
        """A call of the graph, with what it changes put in its place."""
        inputs = self.inputs(leaves)
        if self.update:
            inputs += self.update.tensors(self.info)
        return self._received(self.run(inputs))

    def _finished(self, outputs: Outputs) -> Outputs:
        """A graph's outputs, after the update."""
        if not self.update:
            return self.owner.finished(outputs)
        self.update.check(outputs)
        self.update.advance()
        return outputs

    def inputs(self, leaves: Leaves) -> list[Tensor]:
        """The graph's inputs as they are now."""
        everything = [*self.reach.tensors(), *leaves.tensors, *self.numbers_of(leaves)]
        for i in self.effects:
            everything[i] = detach_provenance(everything[i])
        return [everything[i] for i in self.chosen]

    def on_device(self, leaves: Leaves) -> bool:
        """Whether all that the graph reads and writes stays where it is on a GPU: a CUDA graph knows addresses, and values of the CPU."""
        if self.is_on_device is None:
            self.is_on_device = not self.effects and all(tensor.is_cuda for tensor in self.inputs(leaves))
        return self.is_on_device

    def numbers_of(self, leaves: Leaves) -> list[Tensor]:
        """The numbers that are inputs, as tensors."""
        values = [value for path, value in zip(self.arguments, leaves.numbers) if path in self.dynamic]
        return [_tensor(value) for value in [*self.reach.numbers(), *values]]

    def _received(self, results: list) -> Outputs:
        n = len(results) - self.graph.checked
        outputs = Outputs(results[: n - len(self.effects)], self.info, results[-1] if self.graph.checked else None)
        for i, value in zip(self.effects, results[n - len(self.effects) : n]):
            self._rebind(i, value.detach())
        return outputs

    def _rebind(self, i: int, value: Tensor):
        """Let the program's own attribute, or Pyro's store, hold a new tensor, as the program does."""
        holder, key = self.reach.tensor_slots[0][i], self.reach.tensor_slots[1][i]
        value.requires_grad_(self.known[i].requires_grad)
        store = pyro.get_param_store()
        if holder is store._params:
            store._param_to_name.pop(self.known[i], None)
            store._param_to_name[value] = key
        holder[key] = value
        self.remember(i, value)

    # --- climbing ---

    def settle(self) -> bool:
        """Whether no other graph will come; decided for good once enough calls were timed."""
        looked = self.owner.mode == "auto" and self.level and self.pace.timed >= LOOKS
        self.settled = self.settled or bool(looked and not self._worth_climbing())
        return self.settled

    def _worth_climbing(self) -> bool:
        if self.settled or self.owner.mode == LADDER[self.level]:
            return False
        if self.owner.mode != "auto":
            return True
        return self.pace.repays(LADDER[self.level + 1], self.owner.left(self.pace))

    def climb(self, leaves: Leaves, args: tuple, kwargs: dict) -> Outputs:
        """Make the next graph, run it beside what runs now, and go on with it if the two agree."""
        name, owner, self.pace.unusual = LADDER[self.level + 1], self.owner, True
        owner.announce(name)
        fused = owner.update if name == "compiled" and owner.update and owner.update.kind(self.info) else None
        before = self.snapshot(leaves, fused)
        now, graph = (self.run, self.update), None
        try:
            if name == "traced":
                while owner.ignore(self._trace(leaves, args, kwargs)):  # until no cache of a library is among the inputs
                    before.restore()
                    before = self.snapshot(leaves, fused)
                self.run = self.graph
            else:
                self._compile(leaves, fused)
            before.restore()
            graph, theirs = (self.run, self.update), self._left(self.graphed(leaves), fused)
            drawn = torch.get_rng_state()
        except Exception as error:  # whatever a user's program or a compiler may raise; the program itself still runs
            failure = error
        before.restore()
        if graph is None and name == "traced":
            self._run_through(args, kwargs)
            before.restore()
        self.look()
        self.run, self.update = now
        if graph is None:
            return self._not_climbed(name, failure, leaves, args, kwargs)
        outputs = self.graphed(leaves) if self.level else owner.function(*args, **kwargs)
        same_draws = torch.equal(torch.get_rng_state(), drawn)
        ours = [tensor if tensor is None or not fused else tensor.clone() for tensor in outputs]  # a step may change gradients in place
        if fused:
            outputs = owner.finished(outputs)
        if same_draws and agree(self._left(ours, fused), theirs, ROUNDING[name]):
            (self.run, self.update), self.level, self.runs = graph, self.level + 1, 1
            self.pace.climbed(len(self.graph))
            self.settled = name in (owner.mode, LADDER[-1])
        else:
            what = "does not repeat it" if same_draws else "draws other random numbers"
            self._stay(name, f"its graph {what}; something in it is no tensor operation, or changes from call to call")
        return outputs if fused else owner.finished(outputs)

    def snapshot(self, leaves: Leaves, update: Update | None) -> Snapshot:
        """The state that a call may change: also arguments, and what an update inside a graph changes."""
        arguments = [leaves.tensors[i] for i in self.written]
        return Snapshot(self.reach, [*arguments, *(update.changing(self.info) if update else ())])

    def _run_through(self, args: tuple, kwargs: dict):
        """Run a program to its end that tracing has interrupted, so that what libraries keep between calls, such as plates, is whole."""
        with warnings.catch_warnings(), contextlib.suppress(Exception):  # the call that counts raises and warns
            warnings.simplefilter("ignore")
            self.owner.function(*args, **kwargs)

    def _left(self, outputs: list[Tensor | None], fused: Update | None) -> list[Tensor | None]:
        """What a call gave, and copies of the state in which it left an optimizer."""
        return [*outputs, *(tensor.clone() for tensor in fused.changing(self.info))] if fused else outputs

    def _not_climbed(self, name: str, error: Exception, leaves: Leaves, args: tuple, kwargs: dict) -> Outputs:
        owner = self.owner
        numbers = self.dynamic & {*self.reach.number_paths, *self.arguments}
        if name == "traced" and numbers:  # a number that must be one: each of its values is a kind
            owner.fixed |= numbers
            owner.dynamic -= numbers
            owner.kinds.remove(self)
            owner.last = None
            return owner.kind(leaves)(leaves, args, kwargs)
        line = line_of(error) if name == "traced" else None
        why = str(error).strip().partition("\n")[0]
        why = why if isinstance(error, ValueError) else f"{type(error).__name__}: {why}"
        why = "control flow that depends on a tensor's values" if "_local_scalar_dense" in why else why
        self._stay(name, f"{line}: {why}" if line else why)
        return self._whole(leaves, args, kwargs)

    def _stay(self, name: str, why: str):
        self.settled = True
        self.owner.stay(why, self.level, name)

    def _trace(self, leaves: Leaves, args: tuple, kwargs: dict) -> set[str]:
        """Make the graph; the paths of what libraries rewrote meanwhile."""
        owner, tensors, numbers = self.owner, self.reach.tensors(), self.numbers_of(leaves)
        everything = [detach_provenance(tensor) for tensor in (*tensors, *leaves.tensors, *numbers)]
        first: dict[int, int] = {}
        for i, tensor in enumerate(everything):
            first.setdefault(id(tensor), i)
        self.chosen = list(first.values())
        held = iter(numbers[: len(self.reach.number_paths)])
        given = dict(zip([path for path in self.arguments if path in self.dynamic], numbers[len(self.reach.number_paths) :]))
        if given:
            paths = iter(self.arguments)
            args, kwargs = replaced((args, kwargs), lambda t: t, lambda value: given.get(next(paths), value))
        slots = list(zip(*self.reach.number_slots, self.reach.numbers()))
        names, random = dict(owner.names), python_random()

        def function() -> list:
            for holder, key, _ in slots:
                holder[key] = next(held)
            try:
                with owner.watching():
                    outputs = owner.function(*args, **kwargs)
            finally:
                for holder, key, value in slots:
                    holder[key] = value
            self.info = outputs.info
            return [*outputs, *self._effects(tensors)]

        self.effects = []
        self.graph = Graph(function, [everything[i] for i in self.chosen])
        if owner.names != names:
            raise ValueError("a parameter was made in a later call")
        if python_random() != random:
            where = drawing_line(lambda: owner.function(*args, **kwargs))
            raise ValueError(f"{where}: it draws from Python's or NumPy's random numbers")
        return self.reach.rewritten()

    def _effects(self, before: list[Tensor]) -> list[Tensor]:
        """The tensors that the program has put in place of others, which the graph is going to give."""
        changed = self.reach.changed()
        own = [path for path in changed if path in self.reach.own] + self.reach.resized()
        if own:
            raise ValueError(f"the program changes {own[0].lstrip('#0123456789.')!r} as it runs")
        results = []
        for i, (tensor, now) in enumerate(zip(before, self.reach.tensors())):
            if now is not tensor and self.reach.tensor_paths[i] in self.reach.own:
                self.effects.append(i)
                results.append(detach_provenance(now).detach())
        return results

    def _compile(self, leaves: Leaves, fused: Update | None):
        inputs, graph = self.inputs(leaves), self.graph
        if fused:
            n, inputs = len(inputs), [*inputs, *fused.tensors(self.info)]
            graph = Graph(lambda: self._updated(inputs[:n], fused), inputs)
        self.run, self.update = graph.compiled(inputs), fused
        self.update_kind = fused.kind(self.info) if fused else None

    def _updated(self, inputs: list[Tensor], fused: Update) -> list:
        """The graph's results, after the optimizer's step by tensor operations."""
        results = self.graph(inputs)
        valid = results[-1] if self.graph.checked else None
        fused.traced(Outputs(results[: len(results) - len(self.effects) - self.graph.checked], self.info), valid)
        return results

    # --- proving ---

    def _proved(self, leaves: Leaves, args: tuple, kwargs: dict) -> Outputs:
        """A call of the graph beside the program from the same state; the graph's result counts if the two agree."""
        owner, self.prove, self.pace.unusual = self.owner, False, True
        before = self.snapshot(leaves, self.update)
        with owner.watching():
            expected = owner.function(*args, **kwargs)
        drawn = torch.get_rng_state()
        before.restore()
        self.runs += 1
        outputs = self.graphed(leaves)
        same_draws = torch.equal(torch.get_rng_state(), drawn)
        if same_draws and expected.info == self.info and agree(expected, outputs, ROUNDING[LADDER[self.level]]):
            return self._finished(outputs)
        before.restore()
        self.look()
        self.level, self.update, self.settled = 0, None, True
        owner.stay(f"after {self.runs:,} calls its graph no longer repeats it; something that it reads has changed unseen")
        return owner.eager(*args, **kwargs)


def _version(tensor: Tensor) -> int:
    """How often a tensor was written into."""
    return 0 if tensor.is_inference() else tensor._version


def _tensor(value: int | float) -> Tensor:
    """A number as Python computes with it."""
    return as_input(torch.tensor(value, dtype=torch.int64 if isinstance(value, (int, np.integer)) else torch.float64))
