"""How exactly float32 matrices are multiplied, for a while."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Precision = Literal["auto", "highest", "high", "medium", "bf16"]

_PLACES = {  # by device: where torch keeps its setting, and the setting's words for "highest", "high" and "medium"
    "cpu": ((torch.backends.mkldnn.matmul, ("ieee", "tf32", "bf16")),),
    "cuda": ((torch.backends.cuda.matmul, ("ieee", "tf32", "tf32")), (torch.backends.cudnn.conv, ("ieee", "tf32", "tf32"))),
}
_WORDS = "highest", "high", "medium"
_ROUNDING = 1e-6  # relative error of a product in float32; bfloat16 makes 1e-3, TF32 1e-4
_LARGE = 4_000_000  # multiplications in a product, below which the other kernels cost more to call than they save


def check_precision(precision: str):
    """``ValueError`` for what is none."""
    if precision not in get_args(Precision):
        raise ValueError(f"expected precision as 'auto', 'highest', 'high', 'medium' or 'bf16', got {precision!r}")


def resolved(precision: Precision, weights: Iterable[Tensor], rows: int) -> str:
    """The precision that ``"auto"`` stands for; any other is its own.

    ``"auto"`` is ``"medium"`` where that is measured to be as exact as float32 and the largest product of ``rows`` with
    the weights is not small, ``"highest"`` elsewhere.
    """
    if precision != "auto":
        return precision
    weights = [w for w in weights if w.dim() == 2 and w.dtype == torch.float32]
    large = max((w.numel() for w in weights), default=0) * rows >= _LARGE
    return "medium" if large and _medium_is_exact(weights[0].device) else "highest"


def multiplying(precision: Precision, weights: Iterable[Tensor], rows: int = 1) -> contextlib.AbstractContextManager[None]:
    """Products of float32 matrices at ``precision``, in torch's words, inside; the caller's setting is restored on exit.

    The setting is that of ``torch.backends``, for the device of the weights alone: matrix products, on CUDA convolutions too.
    On CPUs with AVX512-BF16 alone, ``"medium"`` chooses other, faster, float32 kernels; with AMX and on CUDA it rounds.
    ``"bf16"`` is mixed precision: what torch's autocast runs in bfloat16 inside a module is, and what the module gives is
    float32 again, so that no density is computed in bfloat16.
    """
    weights = list(weights)
    device = weights[0].device.type if weights else "cpu"
    return _mixed(device) if precision == "bf16" else _Products(device, _WORDS.index(resolved(precision, weights, rows)))


class _Products:
    """The setting of matrix products on a device; not a generator, since it is entered at every step."""

    def __init__(self, device: str, place: int):
        self.settings = [(owner, words[place]) for owner, words in _PLACES.get(device, ())]

    def __enter__(self):
        self.before = [owner.fp32_precision for owner, _ in self.settings]
        for owner, wanted in self.settings:
            owner.fp32_precision = wanted

    def __exit__(self, *_):
        for (owner, _), setting in zip(self.settings, self.before):
            owner.fp32_precision = setting


@contextlib.contextmanager
def _mixed(device: str) -> Iterator[None]:
    """Mixed precision with bfloat16."""
    with torch.autocast(device, torch.bfloat16, cache_enabled=False), _float32_results():
        yield


@contextlib.contextmanager
def _float32_results() -> Iterator[None]:
    """Every module's result, where it is a bfloat16 tensor, as float32."""
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
    ours, theirs = a.to(device), b.to(device)
    with multiplying("medium", [ours]):
        product = (ours @ theirs).cpu().double()
    exact = a.double() @ b.double()
    return bool((product - exact).norm() < _ROUNDING * exact.norm())
