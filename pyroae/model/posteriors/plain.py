"""Posteriors with one latent site: real numbers, categories, bits, a point, and any family by name."""

import torch
from pyro import distributions as dist
from torch.distributions import constraints

from ...checks import whole_number
from ...registry import register
from .. import distributions
from ..conditional import Parameter, Relaxed, Shape, pyro_family
from .base import Posterior


@register("posteriors")
class Normal(Posterior):
    """Independent Normals: mean and scale from the encoder, or with a fixed or learned scale.

    >>> Normal(3).size, Normal(3)(torch.zeros(5, Normal(3).size)).event_shape
    (6, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, scale: Parameter | None = None):
        super().__init__(dist.Normal, event_shape, scale=scale)


@register("posteriors")
class Laplace(Posterior):
    """Independent Laplaces: location and scale from the encoder.

    >>> Laplace(3).size, Laplace(3)(torch.zeros(5, Laplace(3).size)).event_shape
    (6, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, scale: Parameter | None = None):
        super().__init__(dist.Laplace, event_shape, scale=scale)


@register("posteriors")
class StudentT(Posterior):
    """Independent Student's t: location and scale from the encoder; heavy tails make importance weights safe.

    >>> StudentT(3).size, StudentT(3)(torch.zeros(5, StudentT(3).size)).event_shape
    (6, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, df: Parameter | None = 5.0, scale: Parameter | None = None):
        super().__init__(dist.StudentT, event_shape, df=df, scale=scale)


@register("posteriors")
class FullNormal(Posterior):
    """A Normal with a full covariance: mean and Cholesky factor from the encoder.

    >>> FullNormal(3).size, FullNormal(3)(torch.zeros(5, FullNormal(3).size)).event_shape
    (12, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.MultivariateNormal, event_shape)


@register("posteriors")
class LowRankNormal(Posterior):
    """A Normal with covariance W W' + diagonal: mean, W of the given rank and the diagonal from the encoder.

    >>> LowRankNormal(3).size, LowRankNormal(3)(torch.zeros(5, LowRankNormal(3).size)).event_shape
    (12, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, rank: int = 2):
        whole_number("LowRankNormal", rank=rank)
        self.rank = rank  # before the shapes of the parameters are needed
        super().__init__(dist.LowRankMultivariateNormal, event_shape)

    def _shape(self, name):
        return self.event_shape + torch.Size([self.rank]) if name == "cov_factor" else super()._shape(name)


@register("posteriors")
class ProjectedNormal(Posterior):
    """A direction on the unit sphere, for the prior Sphere: a Normal around the encoder's output, projected; in 2 to 4 dimensions.

    >>> ProjectedNormal(3).size, ProjectedNormal(3)(torch.zeros(5, ProjectedNormal(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.ProjectedNormal, event_shape)
        if self.event_shape is not None and not 2 <= self.event_shape[-1] <= 4:
            raise ValueError(f"ProjectedNormal: Pyro has its density in 2, 3 and 4 dimensions, got {self.event_shape[-1]}")


@register("posteriors")
class PowerSpherical(Posterior):
    r"""A direction on the unit sphere, for the prior Sphere, in any number of dimensions: :math:`q(z|x) \propto (1 + \mu^T z)^\kappa`.

    De Cao & Aziz (2020), close to the von Mises-Fisher of Davidson et al. (2018), with a density and draws in closed form. The encoder's
    output is a vector in the direction of the mean :math:`\mu`, and the concentration :math:`\kappa` before a softplus.

    >>> PowerSpherical(5).size, PowerSpherical(5)(torch.zeros(2, 6)).sample().norm(dim=-1).round()
    (6, tensor([1., 1.]))
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(event_shape=event_shape)
        self.family = distributions.PowerSpherical
        if self.event_shape is not None:
            self.param_sizes = [self.event_shape[-1], 1]
            self.size = sum(self.param_sizes)

    def forward(self, h):
        mean, concentration = h.split(self.param_sizes, -1)
        away = mean + 1e-6  # from the origin, which has no direction
        return self.family(away / away.norm(dim=-1, keepdim=True), torch.nn.functional.softplus(concentration[..., 0]))


@register("posteriors")
class OneHot(Posterior):
    """A category, for the prior OneHot: summed out exactly under TraceEnum_ELBO, for few categories.

    >>> OneHot(3).size, OneHot(3)(torch.zeros(5, OneHot(3).size)).event_shape
    (3, torch.Size([3]))
    """

    infer = {"enumerate": "parallel"}

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.OneHotCategorical, event_shape)


@register("posteriors")
class OneHotStraightThrough(Posterior):
    """A category, for the prior OneHot: a draw with the gradient of the probabilities (biased; Bengio et al. 2013).

    >>> OneHotStraightThrough(3).size, OneHotStraightThrough(3)(torch.zeros(5, OneHotStraightThrough(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.OneHotCategoricalStraightThrough, event_shape)


@register("posteriors")
class BernoulliStraightThrough(Posterior):
    """Bits, for the prior Bernoulli: draws with the gradient of the probabilities (biased; Bengio et al. 2013).

    >>> BernoulliStraightThrough(3).size, BernoulliStraightThrough(3)(torch.zeros(5, BernoulliStraightThrough(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(distributions.BernoulliStraightThrough, event_shape)


@register("posteriors")
class RelaxedOneHot(Relaxed, Posterior):
    """A point of the simplex, for the prior of the same name: the Concrete distribution around the encoder's logits.

    >>> RelaxedOneHot(3).size, RelaxedOneHot(3)(torch.zeros(5, RelaxedOneHot(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, temperature: float = 0.67):
        super().__init__(distributions.RelaxedOneHotCategorical, event_shape, temperature)


@register("posteriors")
class RelaxedBernoulli(Relaxed, Posterior):
    """Numbers between 0 and 1, for the prior of the same name: binary Concrete around the encoder's logits.

    >>> RelaxedBernoulli(3).size, RelaxedBernoulli(3)(torch.zeros(5, RelaxedBernoulli(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, temperature: float = 0.67):
        super().__init__(distributions.RelaxedBits, event_shape, temperature)


@register("posteriors")
class OneHotGumbel(Relaxed, Posterior):
    """A category, for the prior OneHot: a draw with the gradient of its relaxation (straight-through Gumbel-softmax; Jang et al. 2017).

    >>> OneHotGumbel(3).size, OneHotGumbel(3)(torch.zeros(5, OneHotGumbel(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, temperature: float = 0.67):
        super().__init__(distributions.OneHotGumbel, event_shape, temperature)


@register("posteriors")
class BernoulliGumbel(Relaxed, Posterior):
    """Bits, for the prior Bernoulli: draws with the gradient of their relaxation (Maddison et al. 2017).

    >>> BernoulliGumbel(3).size, BernoulliGumbel(3)(torch.zeros(5, BernoulliGumbel(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, temperature: float = 0.67):
        super().__init__(distributions.BernoulliGumbel, event_shape, temperature)


@register("posteriors")
class Delta(Posterior):
    """A point: the code of a deterministic autoencoder.

    Its support is the prior's: the code is a sigmoid for a prior on the unit interval, exponential for one on the positive numbers.

    >>> Delta(3)(torch.ones(5, 3)).mean.shape
    torch.Size([5, 3])
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.Delta, event_shape, limits={"v": constraints.real})

    def _check_support(self, support):
        """Any support will do."""

    def _follow(self, context):
        self.limits = {"v": context.prior.support}


@register("posteriors")
class FromPyro(Posterior):
    """Any Pyro distribution by name; parameters that are not keywords come from the encoder.

    >>> FromPyro("Cauchy", 3)(torch.zeros(5, 6)).event_shape
    torch.Size([3])
    """

    def __init__(self, family: str | type, event_shape: Shape | None = None, **parameters):
        super().__init__(pyro_family(family, "FromPyro"), event_shape, **parameters)
