"""Posteriors at discrete codes: the nearest vectors of a learned codebook, or of a grid."""

from math import prod

import pyro
import torch
from torch import Tensor, nn

from ...checks import whole_number
from ...registry import register
from ...threads import alone
from ..conditional import Shape
from ..distributions import QuantisedPoint
from .base import Posterior


class Quantised(Posterior):
    """q(z|x), a point: each position of the encoder's output ``(..., positions, size)`` becomes one of ``alphabet`` codes.

    Subclasses define ``indices``, ``vectors`` and ``quantise``; the prior is ``pa.priors.Codes`` or ``CodeSequence``.
    """

    alphabet: int  # number of codes

    def __init__(self, event_shape: Shape | None):
        super().__init__(event_shape=event_shape)
        if self.event_shape is None:
            return
        if len(self.event_shape) != 2:
            raise ValueError(
                f"{type(self).__name__}: expected z as positions and the size of a code, such as pa.priors.Codes((16, 8)), "
                f"got the shape {tuple(self.event_shape)}"
            )
        self.size = self.event_shape.numel()
        self.param_sizes = [self.size]

    def indices(self, z: Tensor) -> Tensor:
        """The index of the code nearest to each position of z, ``(..., positions)``."""
        raise NotImplementedError

    def vectors(self, indices: Tensor) -> Tensor:
        """The codes of indices, ``(*indices.shape, size)``."""
        raise NotImplementedError

    def quantise(self, h: Tensor) -> QuantisedPoint:
        """The point for the encoder's output ``(..., positions, size)``."""
        raise NotImplementedError

    def forward(self, h: Tensor) -> QuantisedPoint:
        """q(z|x), of the encoder's output ``(..., positions * size)``."""
        return self.quantise(h.reshape(*h.shape[:-1], *self.event_shape))

    def _check_support(self, support):
        """The prior takes the support from this posterior."""

    def _check_inside(self, prior):
        """Likewise."""


@register("posteriors")
class VectorQuantised(Quantised):
    r"""The nearest of K learned vectors at each position: VQ-VAE (van den Oord et al. 2017, eq. 1 and 2).

    :math:`z_p = e_k, k = \arg\min_k \|h_p - e_k\|`, with the gradient of :math:`h_p` (straight-through). The codebook is learned by moving
    averages of the encoder's outputs that each code is nearest to (appendix A.1), or by the penalty ``pa.penalties.Commitment``, whose
    second term the encoder needs in both cases. Codes that are used less than ``restart`` times as often as if all were used equally
    move to random outputs of the encoder; so do all in the first step. With several processes each has a codebook of its own: use one.

    Args:
        event_shape: positions, and the size of a code.
        codes: K.
        decay: of the moving averages, per step; 0 learns the codebook by the penalty.
        restart: share of the mean usage below which a code is restarted; 0 never.

    >>> vq = vae.replace(prior=pa.priors.Codes((4, 2)), posterior=VectorQuantised(codes=8))
    >>> vq.posterior.indices(vq.encode(x).mean).shape
    torch.Size([20, 4])
    """

    @alone
    def __init__(self, event_shape: Shape | None = None, codes: int = 64, decay: float = 0.99, restart: float = 0.01):
        super().__init__(event_shape)
        whole_number("VectorQuantised", codes=codes)
        if not (0.0 <= decay < 1.0 and 0.0 <= restart < 1.0):
            raise ValueError(f"VectorQuantised: expected decay and restart from 0 to less than 1, got {decay!r} and {restart!r}")
        self.alphabet, self.decay, self.restart = codes, decay, restart
        if self.event_shape is not None:
            book = torch.randn(codes, self.event_shape[1])
            self.book = nn.Parameter(book) if decay == 0.0 else nn.Buffer(book)
            self.register_buffer("usage", torch.zeros(codes))  # moving average of the positions in a batch that have a code
            self.register_buffer("total", torch.zeros_like(book))  # and of the sum of the encoder's outputs there

    def indices(self, z):
        return (z @ self.book.mT - 0.5 * self.book.square().sum(-1)).argmax(-1)

    def vectors(self, indices):
        return self.book[indices]

    def quantise(self, h):
        return QuantisedPoint(h, self.vectors(self.indices(h)))

    def draw(self, h, c=None, x=None):
        q = self(h)
        z = pyro.sample("z", q)
        if self.training:
            self._track(q.encoded.detach().flatten(0, -2))
        return z

    @torch.no_grad()
    def _track(self, encoded: Tensor):
        """Update the moving averages by the encoder's outputs ``(n, size)``, and restart unused codes."""
        decay = self.decay or 0.99
        used = nn.functional.one_hot(self.indices(encoded), self.alphabet).to(encoded.dtype)  # (n, K)
        self.usage.lerp_(used.sum(0), 1 - decay)
        self.total.lerp_(used.mT @ encoded, 1 - decay)
        if self.decay:
            self.book.copy_(torch.where(self.usage[:, None] > 0, self.total / self.usage.clamp(min=1e-9)[:, None], self.book))
        equal = len(encoded) / self.alphabet
        unused = (self.usage < self.restart * equal)[:, None]
        chosen = encoded[torch.randint(len(encoded), (self.alphabet,), device=encoded.device)]
        self.book.copy_(torch.where(unused, chosen, self.book))
        self.total.copy_(torch.where(unused, chosen * equal, self.total))
        self.usage.copy_(torch.where(unused[:, 0], torch.full_like(self.usage, equal), self.usage))


@register("posteriors")
class FiniteScalar(Quantised):
    r"""Each number rounded to one of few levels: finite scalar quantisation (Mentzer et al. 2024, section 3.1).

    :math:`z_j = \mathrm{round}(f(h_j))`, f a tanh scaled to :math:`L_j` levels, with the gradient of f (straight-through); z is divided by
    :math:`\lfloor L_j / 2 \rfloor`. No codebook, no penalty: the codes are the :math:`\prod_j L_j` points of a grid.

    Args:
        event_shape: positions, and the number of levels' entries.
        levels: the number of levels of each number of a position.

    >>> fsq = vae.replace(prior=pa.priors.Codes((4, 2)), posterior=FiniteScalar(levels=[5, 4]))
    >>> fsq.posterior.alphabet, fsq.posterior.indices(fsq.encode(x).mean).shape
    (20, torch.Size([20, 4]))
    """

    def __init__(self, event_shape: Shape | None = None, levels: list[int] = [8, 5, 5, 5]):
        super().__init__(event_shape)
        if not levels or not all(isinstance(level, int) and 2 <= level <= 1000 for level in levels):
            raise ValueError(f"FiniteScalar: expected levels as whole numbers of at least 2, one for each number, got {levels!r}")
        if self.event_shape is not None and self.event_shape[1] != len(levels):
            raise ValueError(
                f"FiniteScalar: expected codes of {len(levels)} numbers, as there are levels, got {self.event_shape[1]}; "
                f"use pa.priors.Codes((positions, {len(levels)}))"
            )
        self.alphabet = prod(levels)
        counts = torch.tensor(levels)
        self.register_buffer("levels", counts, persistent=False)
        self.register_buffer("basis", counts.cumprod(0) // counts, persistent=False)

    def indices(self, z):
        digits = (z * self._half).round().long() + self._half.long()
        return (digits.clamp(min=0).minimum(self.levels - 1) * self.basis).sum(-1)

    def vectors(self, indices):
        digits = indices[..., None] // self.basis % self.levels
        return (digits - self._half) / self._half

    def quantise(self, h):
        reach = (self.levels - 1) * (1 - 1e-3) / 2
        offset = 0.5 * (self.levels % 2 == 0)  # an even number of levels is not symmetric around 0
        bounded = (h + (offset / reach).tan()).tanh() * reach - offset
        return QuantisedPoint(bounded / self._half, bounded.round() / self._half)

    @property
    def _half(self) -> Tensor:
        return (self.levels // 2).to(torch.get_default_dtype())
