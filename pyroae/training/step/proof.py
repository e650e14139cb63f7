"""Comparison of a graph's results with the program's."""

import torch
from torch import Tensor

RTOL = {"traced": 1e-5, "compiled": 1e-2}  # between graph and program; a traced graph runs the same kernels
_ATOMIC_RTOL = 1e-4
_TF32_RTOL = 0.05  # of a norm: gradients of a VAE after 200 steps differ by up to 0.016 from those of exact products


def is_power_of_two(n: int) -> bool:
    """Whether ``n`` is 2, 4, 8, ...: the calls at which a graph is proved."""
    return n > 1 and n & (n - 1) == 0


def results_agree(ours: list[Tensor | None], theirs: list[Tensor | None], rtol: float) -> bool:
    """Whether two results are equal up to ``rtol`` of each entry plus ``0.01 * rtol`` of the largest; in TF32 up to 0.05 of the norm."""
    if [a is None for a in ours] != [b is None for b in theirs]:
        return False
    for a, b in [(a, b) for a, b in zip(ours, theirs) if a is not None]:
        if not a.layout == b.layout == torch.strided:
            return False
        if not a.dim():
            b = b.to(a.device)  # a loss that the program gives as a number, and its graph as a tensor
        if a.shape != b.shape or not _agree(a, b, rtol, a.is_cuda and _rounds()):
            return False
    return True


def _agree(a: Tensor, b: Tensor, rtol: float, rounds: bool) -> bool:
    """Whether two tensors are equal up to rounding; with rounded operands of products, that of small entries is large."""
    if rounds and a.is_floating_point():
        known = ~a.isnan()
        difference = (torch.where(known, a, 0.0) - torch.where(known, b, 0.0)).norm()
        return torch.equal(known, ~b.isnan()) and bool(difference <= _TF32_RTOL * torch.where(known, a, 0.0).norm())
    relative = tolerance(a, rtol)
    return torch.allclose(a, b, relative, 0.01 * relative * _largest(a), equal_nan=True)


def _rounds() -> bool:
    """Whether products on a GPU round their operands to TF32."""
    return "tf32" in (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)


def tolerance(result: Tensor, rtol: float) -> float:
    """Relative tolerance of a result: on a GPU the order of atomic additions varies."""
    return max(rtol, _ATOMIC_RTOL) if result.is_cuda else rtol


def _largest(tensor: Tensor) -> float:
    finite = tensor.detach()[tensor.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0
