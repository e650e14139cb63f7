"""Whether a graph gives what the program gives."""

import torch
from torch import Tensor

ROUNDING = {"traced": 1e-5, "compiled": 1e-2}  # relative, between a graph and the program; the same kernels round alike
_ATOMIC = 1e-4


def is_power_of_two(n: int) -> bool:
    """Whether ``n`` is 2, 4, 8, ...: the calls at which a graph is proved."""
    return n > 1 and n & (n - 1) == 0


def agree(ours: list[Tensor | None], theirs: list[Tensor | None], rounding: float) -> bool:
    """Whether two results are one but for rounding, which is relative to each number and, a hundredth of it, to the largest."""
    if [a is None for a in ours] != [b is None for b in theirs]:
        return False
    for a, b in [(a, b) for a, b in zip(ours, theirs) if a is not None]:
        if not a.layout == b.layout == torch.strided:
            return False
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
