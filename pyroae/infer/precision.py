"""How exactly float32 matrices are multiplied, for a while."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

Precision = Literal["auto", "highest", "high", "medium"]

_ROUNDING = 1e-6  # relative error of a product in float32; bfloat16 makes 1e-3, TF32 1e-4
_LARGE = 4_000_000  # multiplications in a product, below which the other kernels cost more to call than they save


def check_precision(precision: str):
    """``ValueError`` for what is none."""
    if precision not in get_args(Precision):
        raise ValueError(f"expected precision as 'auto', 'highest', 'high' or 'medium', got {precision!r}")


@contextlib.contextmanager
def multiplying(precision: Precision, weights: Iterable[Tensor], rows: int) -> Iterator[None]:
    """Products of float32 matrices at ``precision``, in torch's words, inside; the caller's setting is as it was afterwards.

    ``"auto"`` is ``"medium"`` where that is measured to be as exact as float32 and the largest product of ``rows`` with
    the weights is not small, ``"highest"`` elsewhere. On CPUs with AVX512-BF16 alone, ``"medium"`` chooses other, faster,
    float32 kernels; with AMX and on CUDA it rounds.
    """
    if precision == "auto":
        weights = [w for w in weights if w.dim() == 2 and w.dtype == torch.float32]
        large = max((w.numel() for w in weights), default=0) * rows >= _LARGE
        precision = "medium" if large and _medium_is_exact(weights[0].device) else "highest"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def _medium_is_exact(device: torch.device) -> bool:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(256, 256, generator=generator) for _ in range(2))
    with multiplying("medium", [], 0):
        product = (a.to(device) @ b.to(device)).cpu().double()
    exact = a.double() @ b.double()
    return bool((product - exact).norm() < _ROUNDING * exact.norm())
