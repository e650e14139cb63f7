"""Distributions of discrete codes that are vectors: a point with a straight-through gradient, and a prior over all of them."""

from typing import TYPE_CHECKING, Any

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

if TYPE_CHECKING:
    from ..priors.codes import Codes


class QuantisedPoint(dist.Delta):
    """A point at codes, whose gradient is that of the numbers that were quantised (straight-through; Bengio et al. 2013).

    Args:
        encoded: the numbers, ``(..., positions, size)``.
        codes: what they are quantised to.
    """

    def __init__(self, encoded: Tensor, codes: Tensor):
        self.encoded, self.codes = encoded, codes
        super().__init__(encoded + (codes - encoded).detach(), event_dim=2)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        shape = torch.Size(batch_shape) + self.event_shape
        return QuantisedPoint(self.encoded.expand(shape), self.codes.expand(shape))


class CodeSequence(TorchDistribution):
    """A distribution over vectors of codes, each position one of finitely many; its density is a probability.

    Args:
        prior: has ``log_prob_of`` indices ``(..., positions)``, ``draw_indices``, and the ``book`` of codes.
        batch_shape: shape of independent draws.
    """

    arg_constraints = {}
    has_rsample = False

    def __init__(self, prior: "Codes", batch_shape: torch.Size = torch.Size()):
        self.prior = prior
        super().__init__(torch.Size(batch_shape), prior.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Vectors at codes."""
        return AtCodes(self.prior.book)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        return CodeSequence(self.prior, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p of the codes nearest to ``value``, ``(..., positions, size)``."""
        log_p = self.prior.log_prob_of(self.prior.book.indices(value))
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Vectors of drawn codes."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            indices = self.prior.draw_indices(shape.numel())
            return self.prior.book.vectors(indices).reshape(shape + self.event_shape)


class AtCodes(constraints.Constraint):
    """Vectors that are codes, up to rounding."""

    is_discrete = True
    event_dim = 2

    def __init__(self, book: Any):
        self.book = book

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector is a code, ``(...,)``."""
        nearest = self.book.vectors(self.book.indices(value))
        return ((value - nearest).abs() <= 1e-3 * (1 + nearest.abs())).all(-1).all(-1)
