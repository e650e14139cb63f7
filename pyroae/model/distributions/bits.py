"""Bits and choices: exact, and as relaxations and straight-through draws that pass gradients."""

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F


class ContinuousBernoulli(dist.ContinuousBernoulli):
    r"""Continuous Bernoulli whose log-normaliser is computed from the logits, so that no probability is ever clamped.

    :math:`\log C(l) = \log\frac{l}{\tanh(l / 2)}` with a Taylor series around ``l = 0``
    (Loaiza-Ganem & Cunningham 2019, eq. 5-6, rewritten for the logit ``l``).

    >>> ContinuousBernoulli(logits=torch.tensor(40.0)).log_prob(torch.tensor(0.0)).round(decimals=3)
    tensor(-36.3110)
    """

    def _cont_bern_log_norm(self) -> Tensor:
        size = self.logits.abs()
        small = size < 0.1
        safe = torch.where(small, torch.ones_like(size), size)
        exact = safe.log() - (safe / 2).tanh().log()
        series = 0.6931471805599453 + size**2 / 12 - 7 * size**4 / 1440
        return torch.where(small, series, exact)


class Bernoulli(dist.Bernoulli):
    r"""Bernoulli whose log-probability takes fewer passes over memory: :math:`x l - \log(1 + e^l)` for the logit l.

    >>> Bernoulli(logits=torch.tensor([40.0, -40.0])).log_prob(torch.tensor([0.0, 1.0]))
    tensor([-40., -40.])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats of each entry."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.addcmul(F.softplus(self.logits, threshold=40.0).neg_(), value, self.logits)


class Categorical(dist.Categorical):
    """Pyro's Categorical, whose draws are floats as all data are."""

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw whole numbers."""
        return super().sample(sample_shape).to(self.logits.dtype)


class BernoulliStraightThrough(dist.Bernoulli):
    """Bernoulli whose draws pass gradients on as if they were their probabilities (Bengio et al. 2013)."""

    has_rsample = True

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw 0 or 1 with the gradient of ``probs``."""
        return self.sample(sample_shape) + (self.probs - self.probs.detach())


class OneHotGumbel(dist.OneHotCategorical):
    """A category whose draws pass gradients on as if they were their relaxation (straight-through Gumbel-softmax; Jang et al. 2017).

    A draw is the largest entry of a draw from the Concrete distribution, so exactly of the category's probabilities.
    """

    has_rsample = True

    def __init__(self, temperature: Tensor, logits: Tensor, validate_args: bool | None = None):
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        return type(self)(self.temperature, self.logits.expand(torch.Size(batch_shape) + self.event_shape), validate_args=False)

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw a corner of the simplex with the gradient of a point near it."""
        soft = RelaxedOneHotCategorical(self.temperature, logits=self.logits).rsample(sample_shape)
        hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        return hard + (soft - soft.detach())

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw a category."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class BernoulliGumbel(dist.Bernoulli):
    """Bits whose draws pass gradients on as if they were their relaxation, binary Concrete (Maddison et al. 2017)."""

    has_rsample = True

    def __init__(self, temperature: Tensor, logits: Tensor, validate_args: bool | None = None):
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        return type(self)(self.temperature, self.logits.expand(batch_shape), validate_args=False)

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw 0 or 1 with the gradient of a number near it."""
        soft = RelaxedBits(self.temperature, logits=self.logits).rsample(sample_shape)
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw bits."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class RelaxedOneHotCategorical(dist.RelaxedOneHotCategorical):
    """Pyro's, whose draws stay off the simplex's border, where single precision would put them and the density is no number."""

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw a point of the simplex."""
        z = super().rsample(sample_shape)
        return z.clamp(min=torch.finfo(z.dtype).tiny)

    @property
    def middle(self) -> Tensor:
        """The probabilities: what stands where a mean is asked for, which has no formula."""
        return self.probs

    mean = middle


class RelaxedBits(dist.RelaxedBernoulli):
    """Pyro's RelaxedBernoulli, whose draws stay off the ends 0 and 1, where single precision would put them."""

    arg_constraints = {"logits": constraints.real}

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw numbers between 0 and 1."""
        z = super().rsample(sample_shape)
        return z.clamp(torch.finfo(z.dtype).tiny, 1 - torch.finfo(z.dtype).eps)

    @property
    def middle(self) -> Tensor:
        """The probabilities: what stands where a mean is asked for, which has no formula."""
        return self.probs

    mean = middle


class PartiallyObservedCategorical(dist.OneHotCategorical):
    """A categorical distribution, one-hot, that puts all its mass on the label wherever there is one.

    Args:
        logits: of the prediction q(y|x), ``(..., K)``.
        labels: ``(..., K)``, one-hot where the category is known, 0 where it is not; ``None``: nowhere.
    """

    def __init__(self, logits: Tensor, labels: Tensor | None = None, validate_args: bool | None = None):
        self.predicted = dist.OneHotCategorical(logits=logits)
        self.labels = torch.zeros_like(logits) if labels is None else labels.to(logits.dtype)
        known = self.labels.sum(-1, keepdim=True) > 0
        certain = 100.0 * (self.labels - 1)  # exp(-100) is as good as 0, and its logarithm is finite
        super().__init__(logits=torch.where(known, certain, logits), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        shape = torch.Size(batch_shape) + self.event_shape
        return PartiallyObservedCategorical(self.predicted.logits.expand(shape), self.labels.expand(shape), validate_args=False)
