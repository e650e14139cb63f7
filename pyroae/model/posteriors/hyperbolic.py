"""A posterior on the Poincare ball."""

import torch
from torch import Tensor
from torch.distributions import biject_to

from ...registry import register
from ..conditional import Shape
from ..distributions import WrappedNormal as Distribution
from .base import Posterior


@register("posteriors")
class WrappedNormal(Posterior):
    """A wrapped Normal on the Poincare ball, for the prior of that name, whose curvature it has (Mathieu et al. 2019).

    The encoder gives a tangent vector at the origin, which the exponential map takes to the centre, and a scale for each dimension.

    >>> hyperbolic = vae.replace(prior=pa.priors.WrappedNormal(2), posterior=WrappedNormal())
    >>> hyperbolic.encode(x).mean.shape
    torch.Size([20, 2])
    """

    curvature = 1.0

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(event_shape=event_shape)
        if self.event_shape is not None:
            self.param_sizes = [self.event_shape.numel()] * 2
            self.size = sum(self.param_sizes)

    def forward(self, h: Tensor) -> Distribution:
        tangent, raw = h.split(self.param_sizes, -1)
        ball = Distribution(torch.zeros_like(tangent), torch.ones_like(tangent), self.curvature).support
        return Distribution(biject_to(ball)(tangent), torch.nn.functional.softplus(raw) + 1e-4, self.curvature)

    def _follow(self, context):
        prior = context.prior
        if not hasattr(prior, "curvature"):
            raise ValueError(f"posterior WrappedNormal: expected the prior pa.priors.WrappedNormal, got {type(prior).__name__}")
        self.curvature = prior.curvature

    def _check_support(self, support):
        """The prior's is checked in ``_follow``."""
