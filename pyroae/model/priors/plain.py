"""Priors of one Pyro distribution whose parameters are fixed or learned numbers."""

import torch
from pyro import distributions as dist
from torch.distributions import constraints

from ...registry import register
from ..conditional import Conditional, Parameter, Relaxed, Shape, pyro_family
from ..distributions import RelaxedBits, RelaxedOneHotCategorical, UniformSphere
from .base import Prior


class _LocationScale(Conditional, Prior):
    """Independent entries with a location and a scale."""

    def fit_to(self, z):
        """A start: the mean and the standard deviation, which have to be improved by gradient."""
        self.set_learned("loc", z.mean(0))
        self.set_learned("scale", z.std(0))
        return False


@register("priors")
class Normal(Conditional, Prior):
    """Independent Normals, N(loc, scale^2) in each dimension; the parameters may be ``"learned"``.

    >>> Normal(8)().event_shape
    torch.Size([8])
    """

    def __init__(self, event_shape: Shape | None = None, loc: Parameter = 0.0, scale: Parameter = 1.0):
        super().__init__(dist.Normal, event_shape, loc=loc, scale=scale)

    def fit_to(self, z):
        """The maximum: the mean, and the root mean squared distance from ``loc``, of all entries or per dimension."""
        self.set_learned("loc", z.mean(0))
        squares = (z - self.values()["loc"]).square().mean(0)
        pooled = self._parameters.get("raw_scale", squares).dim() == 0
        self.set_learned("scale", (squares.mean() if pooled else squares).sqrt())
        return True


@register("priors")
class FullNormal(Conditional, Prior):
    r"""A Normal with a learned mean and covariance :math:`L L^T` over a vector, for ``pa.fit_prior``.

    >>> FullNormal(3)().covariance_matrix.shape
    torch.Size([3, 3])
    """

    def __init__(self, event_shape: Shape | None = None, loc: Parameter = "per_dimension", scale_tril: Parameter = "per_dimension"):
        super().__init__(dist.MultivariateNormal, event_shape, loc=loc, scale_tril=scale_tril)

    def fit_to(self, z):
        """The maximum: mean and covariance of the codes; constant directions get a variance of 1e-6 of the mean one."""
        self.set_learned("loc", z.mean(0))
        away = (z - self.values()["loc"]).double()
        covariance = away.mT @ away / len(z)
        least = 1e-6 * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(covariance), dtype=away.dtype, device=z.device)
        self.set_learned("scale_tril", torch.linalg.cholesky(covariance + least).to(z.dtype))
        return True


@register("priors")
class Laplace(_LocationScale):
    r"""Independent Laplaces, for sparse codes: an L1 penalty of weight 1 / scale with a Delta posterior.

    :math:`-\log p(z) = \sum_j |z_j - loc| / scale + \log(2\,scale)`.

    >>> Laplace(8, scale=0.5)().event_shape
    torch.Size([8])
    """

    def __init__(self, event_shape: Shape | None = None, loc: Parameter = 0.0, scale: Parameter = 1.0):
        super().__init__(dist.Laplace, event_shape, loc=loc, scale=scale)

    def fit_to(self, z):
        """The maximum: the median, and the mean distance from ``loc``, of all entries or per dimension."""
        pooled = self._parameters.get("raw_loc", z).dim() == 0
        self.set_learned("loc", z.median().expand(z.shape[1:]) if pooled else z.median(0).values)
        self.set_learned("scale", (z - self.values()["loc"]).abs().mean(0))
        return True


@register("priors")
class SoftLaplace(_LocationScale):
    """Independent soft Laplaces: a smooth peak with Laplace's tails.

    >>> SoftLaplace(8)().event_shape
    torch.Size([8])
    """

    def __init__(self, event_shape: Shape | None = None, loc: Parameter = 0.0, scale: Parameter = 1.0):
        super().__init__(dist.SoftLaplace, event_shape, loc=loc, scale=scale)


@register("priors")
class StudentT(_LocationScale):
    """Independent Student's t, with heavy tails.

    >>> StudentT(8)().event_shape
    torch.Size([8])
    """

    def __init__(self, event_shape: Shape | None = None, df: Parameter = 5.0, loc: Parameter = 0.0, scale: Parameter = 1.0):
        super().__init__(dist.StudentT, event_shape, df=df, loc=loc, scale=scale)


@register("priors")
class Logistic(_LocationScale):
    """Independent Logistics.

    >>> Logistic(8)().event_shape
    torch.Size([8])
    """

    def __init__(self, event_shape: Shape | None = None, loc: Parameter = 0.0, scale: Parameter = 1.0):
        super().__init__(dist.Logistic, event_shape, loc=loc, scale=scale)


@register("priors")
class Uniform(Conditional, Prior):
    """Independent Uniforms from low to high; the code of a Delta posterior is mapped into them.

    >>> Uniform(8)().event_shape
    torch.Size([8])
    """

    def __init__(self, event_shape: Shape | None = None, low: float = -1.0, high: float = 1.0):
        limits = {"low": constraints.dependent, "high": constraints.dependent}
        super().__init__(dist.Uniform, event_shape, limits=limits, low=low, high=high)
        if not low < high:
            raise ValueError(f"Uniform: expected low < high, got low={low!r} and high={high!r}")


@register("priors")
class SpikeSlab(Prior):
    """Sparse codes: each z_j is from the wide slab with probability ``share``, otherwise from the narrow spike.

    Both are Normals around 0 (George & McCulloch 1993).

    >>> SpikeSlab(8)().event_shape
    torch.Size([8])
    """

    def __init__(self, event_shape: Shape | None = None, share: float = 0.2, slab: float = 1.0, spike: float = 0.05):
        super().__init__(event_shape)
        if not (0.0 < share < 1.0 and 0.0 < spike < slab):
            raise ValueError(f"SpikeSlab: expected share between 0 and 1 and 0 < spike < slab, got {share!r}, {spike!r} and {slab!r}")
        self.register_buffer("weights", torch.tensor([share, 1 - share]))
        self.register_buffer("scales", torch.tensor([slab, spike]))

    def forward(self) -> dist.Distribution:
        normals = dist.Normal(torch.zeros_like(self.scales), self.scales).expand([*self.event_shape, 2])
        mixed = dist.MixtureSameFamily(dist.Categorical(self.weights.expand([*self.event_shape, 2])), normals)
        return mixed.to_event(len(self.event_shape))


@register("priors")
class Sphere(Prior):
    """Uniform on the unit sphere, for the posteriors PowerSpherical and ProjectedNormal (Davidson et al. 2018).

    >>> Sphere(3)().sample().norm().round().item()
    1.0
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(event_shape)
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self) -> dist.Distribution:
        return UniformSphere(self.like.expand(self.event_shape))


@register("priors")
class OneHot(Conditional, Prior):
    """A category as a one-hot vector z; the logits may be learned.

    >>> OneHot(5)().sample().sum().item()
    1.0
    """

    def __init__(self, event_shape: Shape | None = None, logits: Parameter = 0.0):
        super().__init__(dist.OneHotCategorical, event_shape, logits=logits)

    def fit_to(self, z):
        """The maximum: the logarithms of the categories' frequencies, which are at least 1e-8."""
        self.set_learned("logits", z.mean(0).clamp(min=1e-8).log())
        return True


@register("priors")
class Bernoulli(Conditional, Prior):
    """Independent bits; the logits may be learned.

    >>> Bernoulli(8)().event_shape
    torch.Size([8])
    """

    def __init__(self, event_shape: Shape | None = None, logits: Parameter = 0.0):
        super().__init__(dist.Bernoulli, event_shape, logits=logits)

    def fit_to(self, z):
        """The maximum: the logits of the bits' frequencies, which are at least 1e-6 from 0 and 1."""
        pooled = self._parameters.get("raw_logits", z).dim() == 0
        self.set_learned("logits", (z.mean() if pooled else z.mean(0)).clamp(1e-6, 1 - 1e-6).logit())
        return True


@register("priors")
class RelaxedOneHot(Relaxed, Prior):
    """The Concrete distribution on the simplex (Maddison et al. 2017; Jang et al. 2017).

    A continuous relaxation of OneHot, nearer to the corners with a lower temperature.

    >>> round(RelaxedOneHot(5)().sample().sum().item(), 3)
    1.0
    """

    def __init__(self, event_shape: Shape | None = None, temperature: float = 0.5, logits: Parameter = 0.0):
        super().__init__(RelaxedOneHotCategorical, event_shape, temperature, logits=logits)

    def accepts(self, z):
        """Whether z is on the simplex, up to rounding."""
        return bool((z >= 0).all()) and torch.allclose(z.sum(-1), torch.ones_like(z[..., 0]), atol=1e-4)


@register("priors")
class RelaxedBernoulli(Relaxed, Prior):
    """The binary Concrete distribution on (0, 1), a continuous relaxation of Bernoulli.

    >>> RelaxedBernoulli(8)().event_shape
    torch.Size([8])
    """

    def __init__(self, event_shape: Shape | None = None, temperature: float = 0.5, logits: Parameter = 0.0):
        super().__init__(RelaxedBits, event_shape, temperature, logits=logits)


@register("priors")
class FromPyro(Conditional, Prior):
    """Any Pyro distribution by name; its parameters are numbers or learned.

    >>> FromPyro("Gumbel", 8, loc=0.0, scale="learned")().event_shape
    torch.Size([8])
    """

    def __init__(self, family: str | type, event_shape: Shape | None = None, **parameters):
        super().__init__(pyro_family(family, "FromPyro"), event_shape, **parameters)
        if self.size:
            missing = [name for name in self.limits if name not in parameters]
            raise ValueError(
                f"FromPyro: a prior has no network, so every parameter needs a number or 'learned', and {' and '.join(missing)} has none"
            )


@register("priors")
class Flat(Prior):
    """Improper: log p(z) = 0 everywhere on its support: ``"real"``, ``"positive"``, ``"nonnegative"`` or ``"unit_interval"``.

    The prior of a classical autoencoder. With ``support="unit_interval"`` the code of a ``Delta`` posterior is a sigmoid. It cannot be
    sampled from, and log p(x) does not exist.

    >>> Flat(3)().log_prob(torch.ones(2, 3))
    tensor([0., 0.])
    """

    proper = False

    def __init__(self, event_shape: Shape | None = None, support: str = "real"):
        super().__init__(event_shape)
        if support not in SUPPORTS:
            raise ValueError(f"Flat: expected support as one of {', '.join(map(repr, SUPPORTS))}, got {support!r}")
        self.limit = SUPPORTS[support]

    def forward(self) -> dist.Distribution:
        return dist.ImproperUniform(constraints.independent(self.limit, len(self.event_shape)), torch.Size(), self.event_shape)


SUPPORTS = {
    "real": constraints.real,
    "positive": constraints.positive,
    "nonnegative": constraints.nonnegative,
    "unit_interval": constraints.unit_interval,
}
