"""When a graph is worth making, and whether it gives what the program gives."""

import torch
from torch import Tensor

ROUNDING = {"traced": 1e-5, "compiled": 1e-2}  # relative, between a graph and the program; the same kernels round alike
_ATOMIC = 1e-4
GAIN = {"traced": 0.4, "compiled": 0.25}  # of a call's time, saved by the next level: a cautious guess before it is there
_LOSS, _GRACE = 0.1, 0.2  # share and seconds by which "auto" may be behind the eager program at any moment


def repays(cost: float, gain: float, done: int, left: float | None, spent: float, eager: float) -> bool:
    """Whether a graph that takes ``cost`` seconds to make, and saves ``gain`` a call, is worth it.

    Where the calls ``left`` are known they must repay it. Otherwise those ``done`` must be as many as would have repaid it,
    and the time ``spent`` must stay within 10% or 0.2 s of what the ``eager`` program would have taken, even if no call
    follows.

    >>> repays(1.0, 0.01, 1000, None, 20.0, 20.0), repays(1.0, 0.01, 1000, None, 5.0, 5.0), repays(1.0, 0.01, 5, 200, 0.1, 0.1)
    (True, False, True)
    """
    if left is not None:
        return gain * left > cost
    return gain * done > cost and spent + cost < (1 + _LOSS) * eager + _GRACE


def is_power_of_two(n: int) -> bool:
    """Whether ``n`` is 2, 4, 8, ...: the calls at which a graph is proved."""
    return n > 1 and n & (n - 1) == 0


def agree(ours: list[Tensor | None], theirs: list[Tensor | None], rounding: float) -> bool:
    """Whether two results are one but for rounding, which is relative to each number and, a hundredth of it, to the largest."""
    if [a is None for a in ours] != [b is None for b in theirs]:
        return False
    for a, b in [(a, b) for a, b in zip(ours, theirs) if a is not None]:
        relative = tolerance(a, rounding)
        if a.shape != b.shape or not torch.allclose(a, b, relative, 0.01 * relative * _largest(a), equal_nan=True):
            return False
    return True


def tolerance(result: Tensor, rounding: float) -> float:
    """The relative rounding allowed in a result: on a GPU atomic additions come in another order in every run."""
    return max(rounding, _ATOMIC) if result.is_cuda else rounding


def _largest(tensor: Tensor) -> float:
    finite = tensor.detach()[tensor.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0
