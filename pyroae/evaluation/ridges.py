"""Directions in which log p(x, u) falls least around a Normal: there its tails are too light."""

import torch
from torch import Tensor

from .density import Density

_RIDGES = 3
_RADIUS = 5.0  # standard deviations from the Normal's mean
_STARTS = 3
_STEPS = 8
_INERTIA = 0.2  # weight of the last direction in the next one
_ALIKE = 0.1  # nats: the first of such directions is taken, so that rounding does not decide


def ridge_axes(density: Density, loc: Tensor, tril: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Axes A of Normals N(m, L L'), the first of them along ridges of log p(x, u), ``(M, size, size)`` with A A' = L L'.

    A ridge is the unit vector d with the largest :math:`\log p(x, m + r L d)`, orthogonal to those before. For a Normal p all are
    alike and the gradient with respect to :math:`e = r d` is -e. So d is replaced by the direction of gradient + e, with a share of
    the last d, again and again.

    Args:
        density: of M examples.
        loc: m, ``(M, size)``.
        tril: L, ``(M, size, size)``.
        dtype: of u.
    """
    m, lower = loc.to(dtype), tril.to(dtype)
    at = lambda d: m + _RADIUS * torch.einsum("mij,smj->smi", lower, d)  # noqa: E731
    ridges = m.new_zeros(*m.shape, 0)
    for start in _starts(m):
        d = _orthogonal(start, ridges)
        for _ in range(_STEPS):
            slope = torch.einsum("mij,smi->smj", lower, density.slope(at(d)))
            d = _orthogonal(slope + (1 + _INERTIA) * _RADIUS * d, ridges)
        log_p = density.log_joint(at(d)).nan_to_num(nan=-torch.inf)
        best = (log_p >= log_p.amax(0) - _ALIKE).byte().argmax(0)
        ridges = torch.cat([ridges, d[best, torch.arange(len(m), device=m.device)][..., None]], -1)
    return tril @ _completed(ridges).to(tril.dtype)


def _starts(m: Tensor) -> Tensor:
    """``(ridges, S, M, size)``, whatever the seed: the same for all examples."""
    size = m.shape[1]
    starts = torch.randn(min(_RIDGES, size - 1), _STARTS, 1, size, generator=torch.Generator().manual_seed(0))
    return starts.to(m).expand(-1, -1, len(m), -1)


def _orthogonal(d: Tensor, ridges: Tensor) -> Tensor:
    """Unit vectors along d ``(S, M, size)`` less its part along the orthonormal ``ridges`` ``(M, size, k)``."""
    d = d - torch.einsum("mik,mjk,smj->smi", ridges, ridges, d)
    return torch.nn.functional.normalize(d, dim=-1)


def _completed(ridges: Tensor) -> Tensor:
    """Rotations ``(M, size, size)`` whose first columns are the orthonormal ``ridges`` ``(M, size, k)``, up to their signs."""
    eye = torch.eye(ridges.shape[1], dtype=ridges.dtype, device=ridges.device)
    return torch.linalg.qr(torch.cat([ridges, eye.expand(len(ridges), -1, -1)], -1)).Q
