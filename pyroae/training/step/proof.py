"""Comparison of a graph's results with the program's."""

import torch
from torch import Tensor

RTOL = {"traced": 1e-5, "compiled": 1e-2}  # between graph and program; a traced graph runs the same kernels
_ATOMIC_RTOL = 1e-4


def is_power_of_two(n: int) -> bool:
    """Whether ``n`` is 2, 4, 8, ...: the calls at which a graph is proved."""
    return n > 1 and n & (n - 1) == 0


def results_agree(ours: list[Tensor | None], theirs: list[Tensor | None], rtol: float) -> bool:
    """Whether two results are equal up to ``rtol`` of each entry plus ``0.01 * rtol`` of the largest."""
    if [a is None for a in ours] != [b is None for b in theirs]:
        return False
    for a, b in [(a, b) for a, b in zip(ours, theirs) if a is not None]:
        if not a.layout == b.layout == torch.strided:
            return False
        if not a.dim():
            b = b.to(a.device)  # a loss that the program gives as a number, and its graph as a tensor
        relative = tolerance(a, rtol)
        if a.shape != b.shape or not torch.allclose(a, b, relative, 0.01 * relative * _largest(a), equal_nan=True):
            return False
    return True


def tolerance(result: Tensor, rtol: float) -> float:
    """Relative tolerance of a result: on a GPU the order of atomic additions varies."""
    return max(rtol, _ATOMIC_RTOL) if result.is_cuda else rtol


def _largest(tensor: Tensor) -> float:
    finite = tensor.detach()[tensor.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0
