"""A prior on the Poincare ball."""

import torch
from torch import nn
from torch.distributions import biject_to

from ...registry import register
from ..conditional import Shape
from ..distributions import WrappedNormal as Distribution
from .base import Prior


@register("priors")
class WrappedNormal(Prior):
    r"""A wrapped Normal around the centre of the Poincare ball of curvature -c, for the posterior of that name (Mathieu et al. 2019).

    Distances grow exponentially towards the edge, as the number of nodes of a tree with its depth.

    Args:
        event_shape: size of z.
        scale: standard deviation of the hyperbolic distance in each direction; ``"learned"`` starts at 1.
        curvature: c; the ball's radius is :math:`1 / \sqrt c`.

    >>> hyperbolic = vae.replace(prior=WrappedNormal(2), posterior=pa.posteriors.WrappedNormal())
    >>> bool((hyperbolic.encode(x).sample().norm(dim=1) < 1).all())
    True
    """

    def __init__(self, event_shape: Shape | None = None, scale: float | str = 1.0, curvature: float = 1.0):
        super().__init__(event_shape)
        if not (isinstance(curvature, (int, float)) and curvature > 0.0):
            raise ValueError(f"WrappedNormal: expected a positive curvature, got {curvature!r}")
        if scale != "learned" and not (isinstance(scale, (int, float)) and scale > 0.0):
            raise ValueError(f"WrappedNormal: expected scale as a positive number or 'learned', got {scale!r}")
        if self.event_shape is not None and len(self.event_shape) != 1:
            raise ValueError(f"WrappedNormal: expected z as a vector, got the shape {tuple(self.event_shape)}")
        self.curvature = float(curvature)
        log_scale = torch.zeros(()) if isinstance(scale, str) else torch.tensor(float(scale)).log()
        if isinstance(scale, str):
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self) -> Distribution:
        scale = self.log_scale.exp().expand(self.event_shape)
        return Distribution(torch.zeros_like(scale), scale, self.curvature)

    @torch.no_grad()
    def fit_to(self, z):
        """The maximum: the root mean squared tangent vector."""
        if isinstance(self.log_scale, nn.Parameter):
            tangent = biject_to(self().support).inv(z)
            self.log_scale.copy_(tangent.square().mean().sqrt().log())
        return True
