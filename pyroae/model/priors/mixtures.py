"""Learned mixtures."""

import warnings

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
    r"""A mixture of Normals with learned weights, means and scales, :math:`p(z) = \sum_k w_k N(z; m_k, S_k)`.

    ``pa.fit_prior`` fits it by expectation maximisation.

    Args:
        event_shape: shape of one z.
        components: number of Normals.
        spread: standard deviation of the initial means.
        full: whether :math:`S_k` are full covariances of a vector z, instead of diagonal ones.

    >>> GaussianMixture(8, components=5)().event_shape
    torch.Size([8])
    """

    @alone
    def __init__(self, event_shape: Shape | None = None, components: int = 10, spread: float = 1.0, full: bool = False):
        super().__init__(event_shape)
        whole_number("GaussianMixture", components=components)
        self.full = full
        if self.event_shape is None:
            return
        if full and len(self.event_shape) != 1:
            raise ValueError(f"GaussianMixture: expected z as a vector where covariances are full, got the shape {tuple(self.event_shape)}")
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(spread * torch.randn(components, *self.event_shape))
        if full:
            self.raw_scale_tril = nn.Parameter(torch.zeros(components, *2 * self.event_shape))
        else:
            self.raw_scale = nn.Parameter(torch.zeros(components, *self.event_shape))

    def forward(self) -> dist.Distribution:
        return _mixture(self.logits, self._components())

    def _components(self) -> dist.Distribution:
        if self.full:
            return dist.MultivariateNormal(self.loc, scale_tril=transform_to(_FACTOR)(self.raw_scale_tril))
        return dist.Normal(self.loc, self.raw_scale.exp()).to_event(len(self.event_shape))

    @torch.no_grad()
    def fit_to(self, z):
        """A local maximum, by expectation maximisation from k-means."""
        if len(z) < len(self.logits):
            raise ValueError(f"GaussianMixture: expected at least {len(self.logits)} codes, one for each component, got {len(z)}")
        from sklearn.mixture import GaussianMixture as EM  # takes a second to import

        kind = "full" if self.full else "diag"
        rows, spread = z.flatten(1).double(), z.flatten(1).double().std(0).clamp(min=1e-6)  # in units of which EM bounds variances
        seed = int(torch.randint(2**31, ()))
        em = EM(len(self.logits), covariance_type=kind, max_iter=_ROUNDS, tol=_GAIN, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it goes on
            em.fit((rows / spread).cpu().numpy())
        weights, loc, covariances = (torch.as_tensor(values).to(rows) for values in (em.weights_, em.means_, em.covariances_))
        self.logits.copy_(weights.log())
        self.loc.copy_((loc * spread).reshape(self.loc.shape))
        if self.full:
            factor = torch.linalg.cholesky(covariances * spread[:, None] * spread)
            self.raw_scale_tril.copy_(transform_to(_FACTOR).inv(factor))
        else:
            self.raw_scale.copy_((covariances.sqrt() * spread).log().reshape(self.loc.shape))
        return True


_FACTOR = constraints.lower_cholesky
_ROUNDS = 200  # of expectation maximisation, at most
_GAIN = 1e-5  # nats per code, below which it stops


@register("priors")
class VampPrior(Prior):
    r"""A mixture of the posteriors of learned pseudo-inputs: :math:`p(z) = \frac1K \sum_k q(z|u_k)` (Tomczak & Welling 2018, eq. 9).

    The pseudo-inputs are encoded once per step, not once per example. They start at random; ``measure(x)``, before
    ``fit``, sets them to random rows of x, as ``pyroae train`` does.

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
