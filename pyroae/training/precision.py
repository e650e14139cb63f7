"""Precision of float32 matrix products, as a context."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Precision = Literal["auto", "highest", "high", "medium", "bf16"]

_BACKENDS = {  # by device: torch's settings, and their values for "highest", "high" and "medium"
    "cpu": ((torch.backends.mkldnn.matmul, ("ieee", "tf32", "bf16")),),
    "cuda": ((torch.backends.cuda.matmul, ("ieee", "tf32", "tf32")), (torch.backends.cudnn.conv, ("ieee", "tf32", "tf32"))),
}
_NAMES = "highest", "high", "medium"
_RTOL = 1e-6  # relative error of a product in float32; 1e-3 in bfloat16, 1e-4 in TF32
_MIN_MULTIPLICATIONS = 4_000_000  # in a product, below which the call overhead of the other kernels exceeds their gain


def check_precision(precision: str):
    """``ValueError`` for an unknown precision."""
    if precision not in get_args(Precision):
        raise ValueError(f"expected precision as 'auto', 'highest', 'high', 'medium' or 'bf16', got {precision!r}")


def resolve_precision(precision: Precision, weights: Iterable[Tensor], rows: int) -> str:
    """Resolve ``"auto"``; other values are returned unchanged.

    ``"auto"`` is ``"medium"`` if that is measured to be as exact as float32 and the largest product of ``rows`` with
    the weights is large enough, otherwise ``"highest"``.
    """
    if precision != "auto":
        return precision
    weights = [w for w in weights if w.dim() == 2 and w.dtype == torch.float32]
    large = max((w.numel() for w in weights), default=0) * rows >= _MIN_MULTIPLICATIONS
    return "medium" if large and _medium_is_exact(weights[0].device) else "highest"


def matmul_precision(precision: Precision, weights: Iterable[Tensor], rows: int = 1) -> contextlib.AbstractContextManager[None]:
    """Context with a precision of float32 matrix products, named as in torch; the previous setting is restored on exit.

    It applies to the device of the weights: matrix products, on CUDA also convolutions. On CPUs with AVX512-BF16 but not
    AMX ``"medium"`` selects other, faster float32 kernels; with AMX and on CUDA it rounds. ``"bf16"`` is mixed precision:
    modules run under torch's autocast with bfloat16, and their outputs are cast to float32, so that no density is
    computed in bfloat16.
    """
    weights = list(weights)
    device = weights[0].device.type if weights else "cpu"
    if precision == "bf16":
        return _mixed(device)
    return _MatmulPrecision(device, _NAMES.index(resolve_precision(precision, weights, rows)))


class PrecisionByRows:
    """Contexts for calls with a precision, which is chosen once per number of rows; without any effect if it is ``None``."""

    def __init__(self, precision: Precision | None):
        self.precision, self.chosen = precision, {}

    def __call__(self, args: tuple, weights: list[Tensor]) -> contextlib.AbstractContextManager[None]:
        if self.precision is None:
            return contextlib.nullcontext()
        rows = next((a.shape[0] for a in args if isinstance(a, Tensor) and a.dim()), 1)
        if rows not in self.chosen and weights:
            self.chosen[rows] = resolve_precision(self.precision, weights, rows)
        return matmul_precision(self.chosen.get(rows, "highest"), weights)


class _MatmulPrecision:
    """Precision of matrix products on a device; a class because a generator is slower to enter, and every step enters it."""

    def __init__(self, device: str, index: int):
        self.settings = [(owner, values[index]) for owner, values in _BACKENDS.get(device, ())]

    def __enter__(self):
        self.before = [owner.fp32_precision for owner, _ in self.settings]
        for owner, value in self.settings:
            owner.fp32_precision = value

    def __exit__(self, *_):
        for (owner, _), value in zip(self.settings, self.before):
            owner.fp32_precision = value


@contextlib.contextmanager
def _mixed(device: str) -> Iterator[None]:
    """Mixed precision with bfloat16."""
    with torch.autocast(device, torch.bfloat16, cache_enabled=False), _float32_results():
        yield


@contextlib.contextmanager
def _float32_results() -> Iterator[None]:
    """Cast bfloat16 outputs of all modules to float32."""
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, result: _float32(result))
    try:
        yield
    finally:
        hook.remove()


def _float32(result: Any) -> Any:
    return result.float() if isinstance(result, Tensor) and result.dtype == torch.bfloat16 else None


@functools.cache
def _medium_is_exact(device: torch.device) -> bool:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(256, 256, generator=generator) for _ in range(2))
    left, right = a.to(device), b.to(device)
    with matmul_precision("medium", [left]):
        product = (left @ right).cpu().double()
    exact = a.double() @ b.double()
    return bool((product - exact).norm() < _RTOL * exact.norm())
