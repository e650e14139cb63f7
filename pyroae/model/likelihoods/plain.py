"""Likelihoods of independent entries: binary, real, positive, counts, categories, grey levels."""

import torch
from pyro import distributions as dist
from torch.distributions import constraints

from ...registry import register
from .. import distributions
from ..conditional import Parameter, Shape, pyro_family
from .base import Likelihood


@register("likelihoods")
class Bernoulli(Likelihood):
    r"""Binary x: cross-entropy from logits, without clamping.

    :math:`\log p(x|z) = \sum_d x_d l_d - \log(1 + e^{l_d})` for the decoder's logits ``l``.

    >>> Bernoulli(2)(torch.tensor([40.0, 0.0])).log_prob(torch.tensor([0.0, 1.0]))
    tensor(-40.6931)
    """

    remedy = "binarize the data (binarize='threshold', 'static' or 'dynamic') or use ContinuousBernoulli for grey levels"

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(distributions.Bernoulli, event_shape)


@register("likelihoods")
class ContinuousBernoulli(Likelihood):
    """x between 0 and 1: cross-entropy plus its log-normaliser.

    Loaiza-Ganem & Cunningham 2019, eq. 5.

    >>> ContinuousBernoulli(64).size
    64
    """

    remedy = "rescale the data to the range 0 to 1 or use Normal"

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(distributions.ContinuousBernoulli, event_shape)


@register("likelihoods")
class Normal(Likelihood):
    r"""Real x: squared error, with a fixed or learned scale, or one from the decoder.

    :math:`\log p(x|z) = -\sum_d \frac{(x_d - \mu_d)^2}{2 s_d^2} + \log s_d + \tfrac12 \log 2\pi`.
    ``scale`` is a number (1.0: squared error), ``"learned"`` (one for all dimensions), ``"per_dimension"`` (learned, one for each)
    or ``None`` (from the decoder).

    >>> Normal(64, scale=0.5).size
    64
    """

    def __init__(self, event_shape: Shape | None = None, scale: Parameter | None = "learned"):
        super().__init__(dist.Normal, event_shape, scale=scale)


@register("likelihoods")
class OptimalNormal(Likelihood):
    r"""Real x: squared error with the maximum-likelihood scale of each batch (the sigma-VAE of Rybkin et al. 2021, eq. 5).

    In training :math:`s^2 = \frac{1}{BD} \sum (x - \mu)^2`; in evaluation mode the scale is a running mean of it, so that
    p(x|z) of one example does not depend on others.

    >>> OptimalNormal(64).size
    64
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.Normal, event_shape, scale=1.0)
        self.register_buffer("batches", torch.zeros(()))

    def make(self, loc, scale):
        """The distribution of single entries."""
        return distributions.ProfiledNormal(loc, scale) if self.training else dist.Normal(loc, scale)

    @torch.no_grad()
    def track(self, x, p):
        """Update the running mean of the scale."""
        share = self.batches.add_(1.0).reciprocal().clamp(min=0.05)  # the weight of this batch in the running mean
        self.scale.copy_(self.scale.square().lerp((x - p.mean).square().mean(), share).sqrt())


@register("likelihoods")
class Laplace(Likelihood):
    """Real x: absolute error; the scale as in Normal.

    >>> Laplace(64).size
    64
    """

    def __init__(self, event_shape: Shape | None = None, scale: Parameter | None = "learned"):
        super().__init__(dist.Laplace, event_shape, scale=scale)


@register("likelihoods")
class StudentT(Likelihood):
    """Real x with heavy tails, robust to outliers; the scale as in Normal.

    >>> StudentT(64).size
    64
    """

    def __init__(self, event_shape: Shape | None = None, df: Parameter | None = 4.0, scale: Parameter | None = "learned"):
        super().__init__(dist.StudentT, event_shape, df=df, scale=scale)


@register("likelihoods")
class LogNormal(Likelihood):
    """Positive x whose logarithm is Normal; the scale as in Normal.

    >>> LogNormal(64).size
    64
    """

    def __init__(self, event_shape: Shape | None = None, scale: Parameter | None = "learned"):
        super().__init__(dist.LogNormal, event_shape, scale=scale)


@register("likelihoods")
class Gamma(Likelihood):
    """Positive x: concentration and rate from the decoder by default.

    >>> Gamma(64).size
    128
    """

    def __init__(self, event_shape: Shape | None = None, concentration: Parameter | None = None, rate: Parameter | None = None):
        super().__init__(dist.Gamma, event_shape, concentration=concentration, rate=rate)


@register("likelihoods")
class Beta(Likelihood):
    """x strictly between 0 and 1: both concentrations from the decoder.

    >>> Beta(64).size
    128
    """

    remedy = "the ends 0 and 1 have no density here: use ContinuousBernoulli, or squeeze the data away from them"

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.Beta, event_shape)

    def support(self, like):
        """The open interval: the density is infinite or 0 at its ends."""
        return constraints.independent(distributions.open_unit_interval, len(self.event_shape))


class _Counts(Likelihood):
    """A distribution of counts."""

    def preprocess(self, x):
        """log(1 + x), as is usual for gene expression (Lopez et al. 2018)."""
        return x.log1p()


@register("likelihoods")
class Poisson(_Counts):
    """Counts: the rate from the decoder. The encoder's input is log(1 + x).

    >>> Poisson(64).size
    64
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.Poisson, event_shape)


@register("likelihoods")
class NegativeBinomial(_Counts):
    """Overdispersed counts: logits from the decoder; the number of failures is learned by default.

    >>> NegativeBinomial(64).size
    64
    """

    def __init__(self, event_shape: Shape | None = None, total_count: Parameter | None = "learned"):
        super().__init__(dist.NegativeBinomial, event_shape, limits=_counted("logits"), total_count=total_count)


@register("likelihoods")
class ZeroInflatedNegativeBinomial(_Counts):
    """Counts with extra zeros: gate and logits from the decoder; the number of failures is learned by default.

    >>> ZeroInflatedNegativeBinomial(64).size
    128
    """

    def __init__(self, event_shape: Shape | None = None, total_count: Parameter | None = "learned"):
        limits = _counted("logits", "gate_logits")
        super().__init__(dist.ZeroInflatedNegativeBinomial, event_shape, limits=limits, total_count=total_count)


@register("likelihoods")
class Categorical(Likelihood):
    """Categories: every entry of x is one of the whole numbers 0 to categories - 1.

    >>> Categorical(64, categories=5).size
    320
    """

    def __init__(self, event_shape: Shape | None = None, categories: int = 2):
        super().__init__(distributions.Categorical, event_shape, length=categories)

    @property
    def input_shape(self):
        """Of the one-hot encoding, for a vector x."""
        return torch.Size([self.event_shape[0] * self.length]) if len(self.event_shape) == 1 else self.event_shape

    def preprocess(self, x):
        """One-hot entries, all 0 where x is missing; x itself where it is not a vector."""
        if len(self.event_shape) > 1:
            return x
        return (x[..., None] == torch.arange(self.length, device=x.device)).to(x.dtype).flatten(-2)

    def mean_or_mode(self, p):
        """The mode of p(x|z); categories have no mean."""
        return p.base_dist.logits.argmax(-1).to(p.base_dist.logits.dtype)


@register("likelihoods")
class GreyLevels(Likelihood):
    """Grey levels from 0 to 1 in equal steps: a categorical distribution over the levels of each entry.

    >>> GreyLevels(64).size
    16384
    """

    remedy = "8-bit images divided by 255 have 256 levels; say levels=... for others"

    def __init__(self, event_shape: Shape | None = None, levels: int = 256):
        super().__init__(distributions.GreyCategorical, event_shape, limits={"logits": constraints.real_vector}, length=levels)


@register("likelihoods")
class DiscretizedLogistic(Likelihood):
    """Grey levels from 0 to 1 in equal steps, each with the mass of a Logistic around it; the scale as in Normal.

    Kingma et al. 2016, section 4 of the appendix; Salimans et al. 2017, section 2.1. The probabilities sum to 1.

    >>> DiscretizedLogistic(64).size
    128
    """

    remedy = GreyLevels.remedy

    def __init__(self, event_shape: Shape | None = None, scale: Parameter | None = None, levels: int = 256):
        super().__init__(distributions.DiscretizedLogistic, event_shape, scale=scale)
        self.levels = levels

    def make(self, **parameters):
        """The distribution of single entries."""
        return self.family(**parameters, levels=self.levels)


@register("likelihoods")
class LogisticMixture(Likelihood):
    """Grey levels by a mixture of discretized Logistics, its weights, means and scales from the decoder (Salimans et al. 2017).

    >>> LogisticMixture(64, components=3).size
    576
    """

    remedy = GreyLevels.remedy

    def __init__(self, event_shape: Shape | None = None, components: int = 5, levels: int = 256):
        limits = {name: constraints.independent(limit, 1) for name, limit in _MIXED.items()}
        super().__init__(distributions.DiscretizedLogistic, event_shape, limits=limits, length=components)
        self.levels = levels

    def make(self, logits, loc, scale):
        """The distribution of single entries."""
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), self.family(loc, scale, self.levels))


_MIXED = {"logits": constraints.real, "loc": constraints.real, "scale": constraints.positive}


@register("likelihoods")
class FromPyro(Likelihood):
    """Any Pyro distribution by name; parameters that are not keywords come from the decoder.

    >>> FromPyro("StudentT", 64, df=3.0).size
    128
    """

    def __init__(self, family: str | type, event_shape: Shape | None = None, **parameters):
        super().__init__(pyro_family(family, "FromPyro"), event_shape, **parameters)


def _counted(*logits: str) -> dict[str, constraints.Constraint]:
    """Constraints of a distribution of counts, with a real number of failures."""
    return {"total_count": constraints.positive} | dict.fromkeys(logits, constraints.real)
