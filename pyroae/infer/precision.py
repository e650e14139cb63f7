"""How exactly float32 matrices are multiplied, for a while."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Literal, get_args

import torch

Precision = Literal["auto", "highest", "high", "medium"]

_ROUNDING = 1e-6  # relative error of a product in float32; bfloat16 makes 1e-3, TF32 1e-4


@contextlib.contextmanager
def multiplying(precision: Precision, device: torch.device) -> Iterator[None]:
    """Products of float32 matrices at ``precision``, in torch's words, inside; the caller's setting is as it was afterwards.

    ``"auto"`` is ``"medium"`` where that is measured to be as exact as float32, ``"highest"`` elsewhere. On CPUs with
    AVX512-BF16 alone, ``"medium"`` chooses other, often faster, float32 kernels; with AMX and on CUDA it rounds.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"expected precision as 'auto', 'highest', 'high' or 'medium', got {precision!r}")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_exact(device) if precision == "auto" else precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def _exact(device: torch.device) -> str:
    """The fastest setting that rounds no more than float32 does."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(256, 256, generator=generator) for _ in range(2))
    with multiplying("medium", device):
        error = (a.to(device) @ b.to(device)).cpu().double() - a.double() @ b.double()
    return "medium" if error.norm() < _ROUNDING * (a.double() @ b.double()).norm() else "highest"
