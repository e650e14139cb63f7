"""By what factors ``poutine.scale`` multiplies the sites of a program."""

from collections.abc import Iterable
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor

Number = float | Tensor


class ScaleFactors(Messenger):
    """Inside, the trace of every site says by what factors ``poutine.scale`` multiplied it: ``site["scale_factors"]``.

    Args:
        start: how many handlers, of those entered before, do not count.
    """

    def __init__(self, start: int = 0):
        super().__init__()
        self.start = start

    def _pyro_sample(self, msg: dict[str, Any]):
        factors = [handler.scale for handler in _PYRO_STACK[self.start :] if isinstance(handler, ScaleMessenger)]
        msg["scale_factors"] = factors + msg.get("scale_factors", [])


def common_scale(found: Iterable[dict], dim: int) -> Number:
    """The product of those factors of ``poutine.scale`` that all sites share, as when the whole programs are scaled.

    Each is one number, or one for each example: these are at ``dim`` of the plates.
    """
    first, *rest = [list(site.get("scale_factors", ())) for site in found]
    shared: Number = 1.0
    for factor in first:
        where = [next((i for i, other in enumerate(others) if same_factor(factor, other)), None) for others in rest]
        if None not in where and _one_per_example(factor, dim):
            shared = shared * factor
            for others, i in zip(rest, where):
                del others[i]
    return shared


def same_factor(a: Number, b: Number) -> bool:
    """Whether two factors are one: equal numbers, or one tensor."""
    return a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b


def _one_per_example(factor: Number, dim: int) -> bool:
    """Whether a factor is one number, or one for each example."""
    return not isinstance(factor, Tensor) or factor.numel() in (1, factor.shape[dim] if factor.dim() >= -dim else 1)
