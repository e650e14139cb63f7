"""Timing of calls, and whether a graph repays the time to build it."""

import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MIN_TIMED = 5  # calls to time before a decision
SAMPLE_AFTER, SAMPLE_EVERY = 50, 7  # after 50 calls that are not tracked, every 7th is timed and represents 7
GAIN = {"traced": 0.4, "compiled": 0.25}  # share of a call's time that the next level saves: a cautious estimate
_AROUND = 5e-6  # seconds of Python and Pyro around an operation, which are all that a traced graph can save
_COST = {"traced": (0.02, 0.0006), "compiled": (12.0, 0.02)}  # seconds to build a graph: constant, and per operation
_LOADING = 0.05  # seconds to load a compiled graph that was kept
_MAX_LOSS, _MIN_LOSS = 0.1, 0.2  # share and seconds, whichever is more, by which "auto" may be slower than the eager program
_RESERVE = 0.01  # share for costs that are not measured
_OVERHEAD = 8e-5  # seconds of an eager call outside the program


class TimeBudget:
    """Seconds of all calls including the building of graphs, and estimated seconds of the program alone."""

    def __init__(self):
        self.spent = self.eager = 0.0


class CallTimes:
    """Number and duration of the calls of one specialization, at its current level.

    Args:
        like: times of calls for which the program takes equally long.
    """

    def __init__(self, budget: TimeBudget, like: "CallTimes | None" = None):
        self.budget, self.done, self.is_graph = budget, 0, False
        self.eager = like.eager if like else 0.0  # seconds of the program
        self.timed = MIN_TIMED if like and like.timed >= MIN_TIMED else 0
        self.seconds = self.timed * self.eager
        self.operations = like.operations if like else 0  # of the program; 0 until they are counted
        self.tracked = False  # whether dependencies of such calls are walked, because a graph is worthwhile
        self.excluded = False  # whether the current call builds or proves a graph, so that its time is not representative
        self.was_seen = False  # whether an earlier process has kept native code of such calls, which will be loaded once they are traced
        self.represented = 0  # calls to come that are not timed, since the last one counts for them too
        self.waits = True  # whether the current call, on a GPU, is timed between synchronizations

    @property
    def mean(self) -> float:
        """Seconds per call. A mean, not a minimum: load of the machine is in both levels that are compared."""
        return self.seconds / self.timed

    def begin(self, start: float, gpu: torch.device | None) -> float:
        """Start time of a call; on a GPU without waiting for it once enough were timed."""
        self.done, self.excluded = self.done + 1, False
        self.waits = gpu is not None and self.timed < MIN_TIMED
        return start if gpu is None else clock(gpu) if self.waits else time.perf_counter()

    def end(self, start: float, gpu: torch.device | None, calls: int = 1):
        """Record a call that began at ``start`` and represents ``calls`` calls.

        On a GPU, once enough were timed, a call counts as much as they did on average, unless it built or proved a graph.
        """
        is_timed = gpu is None or self.waits or self.excluded
        seconds = calls * (clock(gpu) - start if is_timed else self.mean)
        self.done += calls - 1
        if not self.excluded:
            self.timed, self.seconds = self.timed + calls, self.seconds + seconds
            if not self.is_graph:
                self.eager = max(self.mean - _OVERHEAD, 0.0)
        self.budget.spent += seconds
        self.budget.eager += calls * self.eager if self.is_graph or self.excluded else max(seconds - calls * _OVERHEAD, 0.0)

    def counting(self) -> AbstractContextManager:
        """Count the program's operations in a call, once."""
        if self.timed < MIN_TIMED or self.operations:
            return nullcontext()
        self.excluded = True
        return _CountOperations(self)

    def start_level(self, operations: int):
        """Reset the timing for a new level: a graph of this many operations."""
        self.is_graph, self.timed, self.seconds = True, 0, 0.0
        self.operations = self.operations or operations

    def repays(self, level: str, remaining: float | None, is_kept: bool = False) -> bool:
        """Whether to build the next level's graph now.

        Args:
            level: the next one.
            remaining: number of calls still to come, if known.
            is_kept: whether the graph is only loaded, which needs no calls at the current level to be timed.
        """
        if not self.operations or (self.timed < MIN_TIMED and not is_kept):
            return False
        mean = self.mean if self.timed >= MIN_TIMED else (1 - GAIN["traced"]) * self.eager
        gain, price = GAIN[level] * mean, _LOADING if is_kept else cost(level, self.operations)
        if level == "traced":
            gain = min(gain, _AROUND * self.operations)
            if self.was_seen:
                gain, price = gain + GAIN["compiled"] * (mean - gain), price + _LOADING
        return repays(price, gain, self.done, remaining, self.budget.spent, self.budget.eager)


class _CountOperations(TorchDispatchMode):
    """Counts tensor operations, including those of backward passes."""

    def __init__(self, times: CallTimes):
        super().__init__()
        self.times = times

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.times.operations += 1
        return function(*args, **(kwargs or {}))


def cost(level: str, operations: int) -> float:
    """Seconds to build a graph of this many operations."""
    constant, per_operation = _COST[level]
    return constant + per_operation * operations


def repays(cost: float, gain: float, done: int, remaining: float | None, spent: float, eager: float) -> bool:
    """Whether to build a graph that takes ``cost`` seconds and saves ``gain`` seconds per call.

    If the number of ``remaining`` calls is known they must repay it. Otherwise the calls ``done`` must be as many as would
    have repaid it, and the time ``spent`` must stay within 10% or 0.2 s, whichever is more, of that of the ``eager``
    program, even if no call follows.

    >>> repays(1.0, 0.01, 1000, None, 20.0, 20.0), repays(1.0, 0.01, 1000, None, 5.0, 5.0), repays(1.0, 0.01, 5, 200, 0.1, 0.1)
    (True, False, True)
    """
    if remaining is not None:
        return gain * remaining > cost
    return gain * done > cost and spent + cost < eager + max(_MAX_LOSS * eager, _MIN_LOSS) - _RESERVE * eager


def clock(gpu: torch.device | None = None) -> float:
    """Seconds of this thread's CPU time, to exclude other processes; for a GPU wall time after synchronization."""
    if gpu is None:
        return time.thread_time()
    torch.cuda.synchronize(gpu)
    return time.perf_counter()
