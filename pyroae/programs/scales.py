"""Scale factors that ``poutine.scale`` applies to sites."""

from collections.abc import Iterable
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor

Number = float | Tensor


class ScaleFactors(Messenger):
    """Record the factors of ``poutine.scale`` in every site, as ``site["scale_factors"]``.

    Args:
        start: number of outer handlers to ignore.
    """

    def __init__(self, start: int = 0):
        super().__init__()
        self.start = start

    def _pyro_sample(self, msg: dict[str, Any]):
        factors = [handler.scale for handler in _PYRO_STACK[self.start :] if isinstance(handler, ScaleMessenger)]
        msg["scale_factors"] = factors + msg.get("scale_factors", [])


def common_scale(sites: Iterable[dict], dim: int) -> Number:
    """Product of the ``poutine.scale`` factors that all sites share, as when the whole programs are scaled.

    A factor is a scalar, or has one entry per example at plate ``dim``.
    """
    first, *rest = [list(site.get("scale_factors", ())) for site in sites]
    shared: Number = 1.0
    for factor in first:
        indices = [next((i for i, other in enumerate(others) if same_factor(factor, other)), None) for others in rest]
        if None not in indices and _is_per_example(factor, dim):
            shared = shared * factor
            for others, i in zip(rest, indices):
                del others[i]
    return shared


def same_factor(a: Number, b: Number) -> bool:
    """Whether two factors are the same tensor, or equal numbers."""
    return a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b


def _is_per_example(factor: Number, dim: int) -> bool:
    """Whether a factor is a scalar or has one entry per example."""
    return not isinstance(factor, Tensor) or factor.numel() in (1, factor.shape[dim] if factor.dim() >= -dim else 1)
