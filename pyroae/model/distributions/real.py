"""Distributions over real vectors: a Normal with a profiled scale, mixtures of Normals, directions."""

from math import lgamma, log, pi

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import register_kl


class ProfiledNormal(dist.Normal):
    """Normals whose ``log_prob`` takes one maximum-likelihood scale for all values: their root mean squared error.

    Args:
        loc: the means.
        scale: the scale of draws.
    """

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        return ProfiledNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """The profile log-likelihood; the gradient through the scale is 0 at its maximum, so the scale is detached."""
        scale = (value - self.loc).detach().square().mean().sqrt()
        return dist.Normal(self.loc, scale).log_prob(value)


class NormalMixture(dist.MixtureSameFamily):
    r"""A mixture of K diagonal Normals, whose densities at many points are two matrix products, in float64.

    :math:`\log w_k - \frac12 \sum_j (z_j^2 - 2 z_j m_{kj} + m_{kj}^2) / s_{kj}^2 - \sum_j \log s_{kj} - \frac J2 \log 2\pi`, the sums
    over j of what depends on z as products: no array of K times the numbers of all points.

    Why float64: the products cancel. With scales of 0.01 around means of size 1 they miss 0.1 nats in float32 in 20 dimensions, 0.35 in 50,
    centred or not; the sum of squares itself misses 1e-5, but needs that array. GPUs for consumers do float64 at 1/32 to 1/64 of
    their speed: 5 million products in a step of 128 examples, 500 components and 20 dimensions are nothing there either, while an
    evaluation with thousands of particles may spend more on such a prior than on the decoder.

    >>> weights, normals = dist.Categorical(torch.tensor([0.5, 0.5])), dist.Normal(torch.tensor([[-1.0], [1.0]]), 1.0).to_event(1)
    >>> NormalMixture(weights, normals).log_prob(torch.zeros(1)) == dist.Normal(0.0, 1.0).log_prob(torch.ones(()))
    tensor(True)
    """

    own: "NormalMixture | None" = None  # before expand

    def expand(self, batch_shape, _instance=None):
        """The same mixture for a larger batch; its components are not copied."""
        new = super().expand(batch_shape, _instance)
        new.own = self.own or self
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of z, in z's dtype."""
        if self._validate_args:
            self._validate_sample(value)
        own = self.own or self
        normals = own.component_distribution.base_dist
        loc, scale = (p.flatten(1).double() for p in (normals.loc, normals.scale))
        z, precision = value.flatten(-len(self.event_shape)).double(), scale.square().reciprocal()
        constant = (loc.square() * precision + 2 * scale.log() + log(2 * pi)).sum(1)
        components = z @ (loc * precision).mT - 0.5 * (z.square() @ precision.mT + constant)
        log_p = (components + own.mixture_distribution.logits.double().log_softmax(-1)).logsumexp(-1).to(value.dtype)
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))


class NormalExperts(dist.MixtureSameFamily):
    """A mixture whose weights are fixed: draws pass the gradient of the component that was chosen, which is unbiased.

    >>> weights, normals = dist.Categorical(torch.tensor([0.5, 0.5])), dist.Normal(torch.tensor([[-1.0], [1.0]]), 1e-3).to_event(1)
    >>> NormalExperts(weights, normals).rsample().abs().round()
    tensor([1.])
    """

    has_rsample = True

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """A draw from a component that is chosen at random."""
        chosen = self.mixture_distribution.sample(sample_shape)
        draws = self.component_distribution.rsample(sample_shape)  # (..., K, *event)
        event = self.component_distribution.event_shape
        index = chosen.reshape(*chosen.shape, 1, *[1] * len(event)).expand(*chosen.shape, 1, *event)
        return draws.gather(chosen.dim(), index).squeeze(chosen.dim())


class UniformSphere(TorchDistribution):
    """Uniform on the unit sphere in ``size`` dimensions, whose area is 2 pi^(size/2) / Gamma(size/2)."""

    arg_constraints = {}
    support = dist.constraints.sphere

    def __init__(self, like: Tensor, validate_args: bool | None = None):
        self.like = like  # (..., size): its shape, type and device
        super().__init__(like.shape[:-1], like.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """The same distribution for a larger batch."""
        return UniformSphere(self.like.expand(torch.Size(batch_shape) + self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the log of the sphere's area."""
        half = self.event_shape[0] / 2
        log_area = log(2) + half * log(pi) - lgamma(half)
        return value.new_full(torch.broadcast_shapes(value.shape[:-1], self.batch_shape), -log_area)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Normalised Normal draws."""
        z = torch.randn(self._extended_shape(sample_shape), dtype=self.like.dtype, device=self.like.device)
        return z / z.norm(dim=-1, keepdim=True)


class PowerSpherical(TorchDistribution):
    r"""On the unit sphere, :math:`p(z) \propto (1 + \mu^T z)^\kappa` (De Cao & Aziz 2020).

    :math:`\mu^T z = 2 t - 1` with t from Beta(a + kappa, a), a = (size - 1) / 2; the rest of z is uniform.

    Args:
        loc: mean direction of length 1, ``(..., size)``.
        concentration: kappa, ``(...)``; 0 is the uniform distribution.

    >>> PowerSpherical(torch.tensor([0.0, 1.0]), torch.tensor(0.0)).log_prob(torch.tensor([1.0, 0.0])).exp()  # 1 / (2 pi)
    tensor(0.1592)
    """

    arg_constraints = {}
    support = dist.constraints.sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None):
        self.loc, self.concentration = loc, concentration
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean of z, inside the sphere."""
        half = (self.event_shape[0] - 1) / 2
        return self.loc * (self.concentration / (self.concentration + 2 * half))[..., None]

    def expand(self, batch_shape, _instance=None):
        """The same distribution for a larger batch."""
        batch_shape = torch.Size(batch_shape)
        return PowerSpherical(self.loc.expand(batch_shape + self.event_shape), self.concentration.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density by the sphere's area."""
        return self.concentration * torch.log1p((self.loc * value).sum(-1).clamp(min=-1 + 1e-6)) - self.log_scale

    @property
    def log_scale(self) -> Tensor:
        """The log of the integral of (1 + mu' z)^kappa over the sphere."""
        b = (self.event_shape[0] - 1) / 2
        a = b + self.concentration
        return (a + b) * log(2) + b * log(pi) + torch.lgamma(a) - torch.lgamma(a + b)

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """A draw around the first axis, reflected so that this axis becomes the mean direction."""
        shape, b = self._extended_shape(sample_shape), (self.event_shape[0] - 1) / 2
        ahead, behind = (dist.Gamma(a, 1.0).rsample(sample_shape) for a in (b + self.concentration, torch.full_like(self.concentration, b)))
        along = 2 * ahead / (ahead + behind) - 1  # a quotient of Gammas is a Beta
        across = torch.randn(*shape[:-1], shape[-1] - 1, dtype=self.loc.dtype, device=self.loc.device)
        across = across / across.norm(dim=-1, keepdim=True) * (1 - along.square()).clamp(min=1e-12).sqrt()[..., None]
        z = torch.cat([along[..., None], across], -1)
        first = torch.zeros_like(self.loc)
        first[..., 0] = 1.0
        normal = first - self.loc
        normal = normal / normal.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        return z - 2 * (z * normal).sum(-1, keepdim=True) * normal


@register_kl(PowerSpherical, UniformSphere)
def _kl_to_uniform(q: PowerSpherical, p: UniformSphere) -> Tensor:
    """E log q(z) by E log((1 + mu' z) / 2) = digamma(a) - digamma(a + b), plus the log of the sphere's area."""
    b = (q.event_shape[0] - 1) / 2
    a = b + q.concentration
    half = q.event_shape[0] / 2
    mean_log = log(2) + torch.digamma(a) - torch.digamma(a + b)
    return q.concentration * mean_log - q.log_scale + log(2) + half * log(pi) - lgamma(half)
