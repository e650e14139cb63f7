"""Running a function's Python once: its tensor operations are kept as a graph, and compiled where that pays."""

import logging
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Literal

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from ...registry import Part
from .static import Static
from .updates import Update

Mode = Literal["auto", "eager", "traced", "compiled"]
Outputs = list[Tensor | None]

_LOG = logging.getLogger("pyroae")
_LADDER = ("eager", "traced", "compiled")
_ROUNDING = {"traced": 1e-4, "compiled": 1e-2}  # relative, between a graph and what it replaces; the same kernels round alike
_WORTH = {"traced": 10.0, "compiled": 60.0}  # seconds of calls still to come that repay the change; it costs up to 4, and 20
_LOOKS = 5  # calls timed before deciding
_KINDS = 8  # graphs kept, after which a function is taken to be different at every call
_PLAIN = (bool, int, float, str, type(None))


class Traced:
    """A function of tensors whose Python runs once for each kind of call; afterwards only its tensor operations do.

    A kind is the arguments' shapes, types and devices, and every plain setting of what is watched: train or eval, a
    number in an objective. The parameters, buffers and other tensors that the function reaches are looked up at every
    call, so they may change in place; a Python number from elsewhere, such as a global, is fixed: pass it as an argument.
    Random numbers are torch's own, in the same order: a graph draws afresh at every call, what the function itself would
    have drawn. Before a graph is used it is run beside what it replaces, from one random state; where the two differ, or
    no graph can be made, the function goes on as it was and the log says why, once.

    Args:
        function: gives a list of tensors (or None).
        watched: modules and objectives that the function reaches; modules that it calls are found without being named.
        mode: ``"eager"``: never a graph. ``"traced"``: a graph of torch's own kernels, made within a second (the first in
            four), on a CPU the same to the bit. ``"compiled"``: fused by Inductor, in some 20 seconds. ``"auto"``: eager
            at first, then what the calls still to come repay.
        calls: how many will come, where that is known; otherwise as many as came already.
        update: what is done with the outputs of every call. It becomes a part of a compiled graph where it can.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        watched: list[Any] = (),
        mode: Mode = "auto",
        calls: int | None = None,
        update: Update | None = None,
    ):
        if mode not in ("auto", *_LADDER):
            raise ValueError(f"expected compile as 'auto', 'eager', 'traced' or 'compiled', got {mode!r}")
        self.function, self.watched, self.mode, self.calls, self.update = function, list(watched), mode, calls, update
        self.kinds: dict[tuple, _Kind] = {}
        self.done = 0
        self.announce: Callable[[str], Any] = lambda name: None  # called before a graph is made, which takes its time
        self.tensors = self.plain = None  # (holder, name) of everything that is looked up at every call

    def __call__(self, *args) -> Outputs:
        if self.mode == "eager":
            return self.finished(self.function(*args))
        if self.tensors is None:
            return self.finished(self._first(*args))
        self.done += 1
        held, key = self._look(args)
        return (self.kinds.get(key) or self._kind(key))(held, args)

    def finished(self, outputs: Outputs) -> Outputs:
        """The outputs, after the update."""
        return self.update(outputs) if self.update else outputs

    def settled(self, *args) -> tuple | None:
        """What kind of call this is, if a graph runs it and will to the end."""
        if self.mode == "eager" or self.tensors is None:
            return None
        _, key = self._look(args)
        kind = self.kinds.get(key)
        return (kind.level, key) if kind and kind.settle() and kind.level else None

    def levels(self) -> list[tuple[int, int]] | None:
        """The rows of each kind of call with how far it has come, 0 being eager; ``None`` before the first call."""
        if self.tensors is None:
            return None
        return [(args[0][0][0], kind.level) for (args, *_), kind in self.kinds.items() if args and isinstance(args[0], tuple)]

    def climb(self, level: int, *args):
        """Make now what calls of this kind have led to elsewhere. It counts as no call."""
        if self.mode != "eager" and self.tensors is None:
            self._first(*args)
        if self.mode != "eager" and level:
            held, key = self._look(args)
            kind = self.kinds.get(key) or self._kind(key)
            before = _snapshot(held, self.update)
            while kind.level < level and not kind.settled:
                kind._climb(held, args)
            _restore(before)

    def _look(self, args: tuple) -> tuple[list[Tensor], tuple]:
        """The tensors that the function reaches, as they are now, and the kind of this call."""
        held = [holder[name] for holder, name in self.tensors]
        return held, (
            tuple((a.shape, a.dtype, a.device) if isinstance(a, Tensor) else a for a in args),
            tuple(holder.get(name) for holder, name in self.plain),
            tuple(tensor.requires_grad for tensor in held),
            self.update.kind if self.update else None,
        )

    def _first(self, *args) -> Outputs:
        """The first call is eager: programs make their parameters in it, and it shows which modules are called."""
        if strange := [type(a).__name__ for a in args if not isinstance(a, (Tensor, *_PLAIN))]:
            self.mode = "eager"
            _LOG.warning("compile: an argument is a %s, neither tensor nor number; going on eagerly", strange[0])
        with nn.modules.module.register_module_forward_pre_hook(lambda module, _: self.watched.append(module)):
            outputs = self.function(*args)
        found = {id(each): each for each in chain.from_iterable(map(_within, self.watched))}.values()
        holders = [vars(each) for each in found]
        holders += chain.from_iterable((each._parameters, each._buffers) for each in found if isinstance(each, nn.Module))
        slots = [(holder, name, value) for holder in holders for name, value in holder.items()]
        self.tensors = [(holder, name) for holder, name, value in slots if isinstance(value, Tensor)]
        self.plain = [(holder, name) for holder, name, value in slots if isinstance(value, _PLAIN)]
        return outputs

    def _kind(self, key: tuple) -> "_Kind":
        if len(self.kinds) == _KINDS:
            self.mode = "eager"
            _LOG.warning("compile: more than %d kinds of call (shapes, settings, modes) have come; going on eagerly", _KINDS)
        return self.kinds.setdefault(key, _Kind(self))


class _Kind:
    """Calls of one kind, and what runs them now."""

    def __init__(self, owner: Traced):
        self.owner, self.level, self.graph = owner, 0, None
        self.run = lambda held, args: owner.function(*args)
        self.settled, self.seconds, self.done = False, [], 0
        self.update = None  # where it is a part of the graph

    def __call__(self, held: list[Tensor], args: tuple) -> Outputs:
        if self.settled:
            return self._whole(held, args)
        self.done += 1
        if self._worth_climbing():
            return self._climb(held, args)
        start = time.perf_counter()
        outputs = self._whole(held, args)
        self.seconds.append(time.perf_counter() - start)
        return outputs

    def _whole(self, held: list[Tensor], args: tuple) -> Outputs:
        if self.update:
            return self.update.give(self.run([*held, *self.update.tensors()], args))
        return self.owner.finished(self.run(held, args))

    def settle(self) -> bool:
        """Whether no other graph will come; decided for good once enough calls were timed."""
        looked = self.owner.mode == "auto" and self.level and len(self.seconds) >= _LOOKS
        self.settled = self.settled or bool(looked and not self._worth_climbing())
        return self.settled

    def _worth_climbing(self) -> bool:
        mode = self.owner.mode
        if mode != "auto":
            return True
        if len(self.seconds) < _LOOKS:
            return False
        left = self.done if self.owner.calls is None else (self.owner.calls - self.owner.done) * self.done / self.owner.done
        best = min(self.seconds[-_LOOKS:])
        del self.seconds[:-_LOOKS]
        return best * left > _WORTH[_LADDER[self.level + 1]]

    def _climb(self, held: list[Tensor], args: tuple) -> Outputs:
        """Make the next graph, run it beside what runs now, and go on with it if the two agree."""
        name, owner = _LADDER[self.level + 1], self.owner
        update = owner.update if name == "compiled" and owner.update and owner.update.kind else None
        before = _snapshot(held, update)
        owner.announce(name)
        try:
            if name == "traced":
                self.graph = run = Graph(owner.function, held, args)
            else:
                run = self.graph.compiled(held, args, update)
            _restore(before)
            theirs = _left(run([*held, *(update.tensors() if update else [])], args), update)
        except Exception as error:  # whatever a user's program or a compiler may raise; the program itself still runs
            run, why = None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        _restore(before)
        finish = owner.finished if update else list  # a hook may change gradients in place, once they have been compared
        ours = finish(self.run(held, args))
        if run is not None and not _agree(_left(ours, update), theirs, _ROUNDING[name]):
            run, why = None, "its graph does not repeat it; something in it is no tensor operation, such as NumPy's or Python's random"
        if run is None:
            self._stay(name, why)
        else:
            self.run, self.level, self.update, self.seconds = run, self.level + 1, update, []
        self.settled = run is None or name in (owner.mode, _LADDER[-1])
        return ours if update else owner.finished(ours)

    def _stay(self, name: str, why: str):
        """No call of another kind tries it again, and the reason is given once."""
        self.owner.mode = _LADDER[self.level]
        _LOG.warning("compile: the program cannot be %s and goes on %s: %s", name, self.owner.mode, why)


class Graph:
    """The tensor operations of ``function(*args)``, with the tensors it reaches as inputs of their own."""

    def __init__(self, function: Callable[..., Outputs], held: list[Tensor], args: tuple):
        from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

        rest = [a for a in args if not isinstance(a, Tensor)]

        def flat(held, *tensors):
            left, others = iter(tensors), iter(rest)
            return function(*(next(left) if isinstance(a, Tensor) else next(others) for a in args))

        def static(*inputs):
            with Static():
                return flat(*inputs)

        with pyro.validation_enabled(False):
            module = make_fx(static)(held, *_tensors(args))
        _refuse_changing_shapes(module.graph)
        self.module, self.constants = _lifted(module)

    def __call__(self, held: list[Tensor], args: tuple) -> Outputs:
        with torch.no_grad():
            return self.module(*held, *_tensors(args), *self.constants)

    def compiled(self, held: list[Tensor], args: tuple, update: Update | None) -> Callable[[list[Tensor], tuple], Outputs]:
        """The same by Inductor, with torch's own random numbers; with an update, whose tensors then come after ``held``."""
        import torch._inductor

        whole = self
        if update:
            whole = Graph(lambda *args: update.traced(self(held, args)), [*held, *update.tensors()], args)
            held = [*held, *update.tensors()]
        with torch.no_grad():
            inputs = [tensor.detach() for tensor in (*held, *_tensors(args), *whole.constants)]
            quick = torch._inductor.compile(whole.module, inputs, options={"fallback_random": True})

        def run(held, args):
            with torch.no_grad():
                return quick(*held, *_tensors(args), *whole.constants)

        return run


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


def _lifted(module: torch.fx.GraphModule) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """A graph with flat inputs, among them the tensors it had caught by reference (not those that the program writes out as numbers)."""
    graph, caught = module.graph, {}
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        if all(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users):
            continue
        if node.target not in caught:
            with graph.inserting_after(last):
                last = caught[node.target] = graph.placeholder(node.target)
        node.replace_all_uses_with(caught[node.target])
        graph.erase_node(node)
    for node in graph.nodes:
        node.meta.clear()  # of many fake modes, which Inductor would refuse
    graph.set_codegen(torch.fx.graph.CodeGen())
    return torch.fx.GraphModule(module, graph), [getattr(module, name) for name in caught]


def _tensors(args: tuple) -> Iterator[Tensor]:
    return (a for a in args if isinstance(a, Tensor))


def _within(each: Any) -> Iterator[Any]:
    """A module's modules; an objective and those inside it."""
    if isinstance(each, nn.Module):
        yield from each.modules()
        return
    yield each
    for value in vars(each).values():
        if isinstance(value, ELBO | Part) and not isinstance(value, nn.Module):
            yield from _within(value)


def _snapshot(held: list[Tensor], update: Update | None) -> tuple:
    """Random states, and the tensors that a call may change, with copies: those that take no gradient, and what the update changes."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    changing = [tensor for tensor in held if not tensor.requires_grad]
    changing += [*update.parameters, *update.tensors()] if update and update.kind else []
    return torch.get_rng_state(), cuda, [(tensor, tensor.detach().clone()) for tensor in changing]


@torch.no_grad()
def _restore(before: tuple):
    cpu, cuda, copies = before
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
    for tensor, copy in copies:
        tensor.copy_(copy)


def _left(outputs: Outputs, update: Update | None) -> Outputs:
    """What a call gave, and copies of the state in which it left an optimizer."""
    return [*outputs, *(tensor.clone() for tensor in update.tensors())] if update else outputs


def _agree(ours: Outputs, theirs: Outputs, rounding: float) -> bool:
    """Whether two results are one but for rounding, which is relative to each number and, a hundredth of it, to the largest."""
    if [a is None for a in ours] != [b is None for b in theirs]:
        return False
    pairs = [(a, b) for a, b in zip(ours, theirs) if a is not None]
    return all(
        a.shape == b.shape and torch.allclose(a, b, rounding, 0.01 * rounding * float(a.abs().max()), equal_nan=True) for a, b in pairs
    )
