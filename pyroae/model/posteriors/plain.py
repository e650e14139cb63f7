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
