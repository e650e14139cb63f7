"""Learned mixtures."""

import torch
from pyro import distributions as dist
from torch import nn
from torch.distributions import constraints, transform_to

from ...checks import whole_number
from ...registry import register
from ...threads import alone
from ..conditional import Shape
from ..distributions import NormalMixture
from .base import Prior
from .from_distribution import FromDistribution


@register("priors")
class GaussianMixture(Prior):
    """A mixture of diagonal Normals with learned weights, means and scales.

    Args:
        event_shape: shape of one z.
        components: number of Normals.
        spread: standard deviation of the initial means.

    >>> GaussianMixture(8, components=5)().event_shape
    torch.Size([8])
    """

    @alone
    def __init__(self, event_shape: Shape | None = None, components: int = 10, spread: float = 1.0):
        super().__init__(event_shape)
        whole_number("GaussianMixture", components=components)
        if self.event_shape is not None:
            self.logits = nn.Parameter(torch.zeros(components))
            self.loc = nn.Parameter(spread * torch.randn(components, *self.event_shape))
            self.raw_scale = nn.Parameter(torch.zeros(components, *self.event_shape))

    def forward(self) -> dist.Distribution:
        return _mixture(self.logits, dist.Normal(self.loc, self.raw_scale.exp()).to_event(len(self.event_shape)))


@register("priors")
class VampPrior(Prior):
    r"""A mixture of the posteriors of learned pseudo-inputs: :math:`p(z) = \frac1K \sum_k q(z|u_k)` (Tomczak & Welling 2018, eq. 9).

    The pseudo-inputs are encoded once per step, not once per example. They start at random; ``measure`` sets them to training data.

    Args:
        event_shape: shape of one z.
        components: K.

    >>> vae.replace(prior=VampPrior(2, components=5)).sample(3).shape
    torch.Size([3, 16])
    """

    support = constraints.real

    def __init__(self, event_shape: Shape | None = None, components: int = 100):
        super().__init__(event_shape)
        whole_number("VampPrior", components=components)
        self.components = components

    def accepts(self, z):
        """Always: the posteriors have the same support."""
        return True

    def build(self, context):
        built = super().build(context)
        if context.guide is not None:
            built._attach(context.guide, context.likelihood)
        return built

    def _attach(self, guide, likelihood):
        if guide.condition is not None and guide.condition.for_networks:
            raise ValueError(
                "VampPrior: its pseudo-inputs have no labels, so that it takes no condition; use GaussianMixture or Conditioned"
            )
        self._guide = (guide,)  # no submodule: its parameters are the guide's
        bounded = likelihood.bounded
        self._squash = constraints.unit_interval if bounded else constraints.real
        shape = (self.components, *likelihood.event_shape)
        if not hasattr(self, "raw") or self.raw.shape != shape:
            self.raw = nn.Parameter(torch.randn(shape) - (2.0 if bounded else 0.0))

    @torch.no_grad()
    def measure(self, x: torch.Tensor):
        """Set the pseudo-inputs to ``components`` random examples."""
        rows = x[torch.randint(len(x), (self.components,), device=x.device)].to(self.raw)
        rows = torch.where(rows.isnan(), x.nanmean(0).nan_to_num(), rows)  # what is missing
        self.raw.copy_(transform_to(self._squash).inv(rows * 0.98 + 0.01) if self._squash is constraints.unit_interval else rows)

    @torch.no_grad()
    def frozen(self):
        """The mixture of the current posteriors: an evaluation encodes the pseudo-inputs once."""
        return FromDistribution(self())

    def forward(self) -> dist.Distribution:
        posteriors = self._guide[0].conditional(transform_to(self._squash)(self.raw))
        return _mixture(self.raw.new_zeros(self.components), posteriors)


def _mixture(logits: torch.Tensor, components: dist.Distribution) -> dist.Distribution:
    normal = isinstance(components, torch.distributions.Independent) and isinstance(components.base_dist, dist.Normal)
    return (NormalMixture if normal else dist.MixtureSameFamily)(dist.Categorical(logits=logits), components)
