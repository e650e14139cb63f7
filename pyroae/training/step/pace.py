"""How long calls take, and whether a graph of them would repay the time that it takes to make."""

import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode

LOOKS = 5  # calls timed before deciding
SAMPLED, EACH = 50, 7  # after so many calls that are not watched, each 7th is timed, and stands for 7
GAIN = {"traced": 0.4, "compiled": 0.25}  # of a call's time, saved by the next level: a cautious guess before it is there
_COST = {"traced": (0.02, 0.0006), "compiled": (12.0, 0.02)}  # seconds to make a graph, and those of each operation
_LOSS, _GRACE = 0.1, 0.2  # share and seconds, whichever is more, by which "auto" may be behind the eager program
_RESERVE = 0.01  # share kept for what is not counted here
_OVERHEAD = 8e-5  # seconds of an eager call that are not the program's own


class Budget:
    """Seconds that calls took, those that make graphs included, and seconds that the programs by themselves would have taken."""

    def __init__(self):
        self.spent = self.eager = 0.0


class Pace:
    """The calls of one kind: how many have come, and what one takes on their present level.

    Args:
        like: calls that take the program as long as these.
    """

    def __init__(self, budget: Budget, like: "Pace | None" = None):
        self.budget, self.done, self.by_graph = budget, 0, False
        self.eager = like.eager if like else 0.0  # seconds that the program takes
        self.timed = LOOKS if like and like.timed >= LOOKS else 0
        self.seconds = self.timed * self.eager
        self.operations = like.operations if like else 0  # of the program; 0 until they are counted
        self.watched = False  # whether what such calls read is looked at, because a graph was worth making
        self.unusual = False  # whether the call under way makes or proves a graph

    @property
    def mean(self) -> float:
        """Seconds of a call. Means, not minima: the time that a busy machine takes is in both levels that are compared."""
        return self.seconds / self.timed

    def begin(self, start: float, gpu: torch.device | None) -> float | None:
        """When the call began that was met at ``start``; ``None`` on a GPU once enough were timed, as timing waits for the device."""
        self.done, self.unusual = self.done + 1, False
        if gpu:
            return now(gpu) if self.timed < LOOKS else None
        return start

    def end(self, start: float | None, gpu: torch.device | None, calls: int = 1):
        """After a call that began at ``start``, and that stands for so many ``calls``."""
        seconds = calls * (self.mean if start is None else now(gpu) - start)
        self.done += calls - 1
        if not self.unusual:
            self.timed, self.seconds = self.timed + calls, self.seconds + seconds
            if not self.by_graph:
                self.eager = max(self.mean - _OVERHEAD, 0.0)
        self.budget.spent += seconds
        self.budget.eager += calls * self.eager if self.by_graph or self.unusual else max(seconds - calls * _OVERHEAD, 0.0)

    def counting(self) -> AbstractContextManager:
        """Counts the program's operations inside, in one call."""
        if self.timed < LOOKS or self.operations:
            return nullcontext()
        self.unusual = True
        return _CountOperations(self)

    def climbed(self, operations: int):
        """The calls to come are on another level: a graph of so many operations."""
        self.by_graph, self.timed, self.seconds = True, 0, 0.0
        self.operations = self.operations or operations

    def repays(self, level: str, left: float | None) -> bool:
        """Whether the graph of the next level is worth making now; ``left``: the calls of this kind to come, where known."""
        if self.timed < LOOKS or not self.operations:
            return False
        gain = GAIN[level] * self.mean
        return repays(cost(level, self.operations), gain, self.done, left, self.budget.spent, self.budget.eager)


class _CountOperations(TorchDispatchMode):
    """Counts the tensor operations inside, those of backward passes included."""

    def __init__(self, pace: Pace):
        super().__init__()
        self.pace = pace

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.pace.operations += 1
        return function(*args, **(kwargs or {}))


def cost(level: str, operations: int) -> float:
    """Seconds that it takes to make a graph of so many operations."""
    constant, each = _COST[level]
    return constant + each * operations


def repays(cost: float, gain: float, done: int, left: float | None, spent: float, eager: float) -> bool:
    """Whether a graph that takes ``cost`` seconds to make, and saves ``gain`` a call, is worth it.

    Where the calls ``left`` are known they must repay it. Otherwise those ``done`` must be as many as would have repaid it,
    and the time ``spent`` must stay within 10% or 0.2 s, whichever is more, of what the ``eager`` program would have taken,
    even if no call follows.

    >>> repays(1.0, 0.01, 1000, None, 20.0, 20.0), repays(1.0, 0.01, 1000, None, 5.0, 5.0), repays(1.0, 0.01, 5, 200, 0.1, 0.1)
    (True, False, True)
    """
    if left is not None:
        return gain * left > cost
    return gain * done > cost and spent + cost < eager + max(_LOSS * eager, _GRACE) - _RESERVE * eager


def now(gpu: torch.device | None = None) -> float:
    """Seconds: of this thread's processor, so that other programs do not count; or by the clock, once a GPU has done its work."""
    if gpu is None:
        return time.thread_time()
    torch.cuda.synchronize(gpu)
    return time.perf_counter()
