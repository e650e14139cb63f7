"""Bits and categories: exact, relaxed, and straight-through draws with gradients."""

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F


class ContinuousBernoulli(dist.ContinuousBernoulli):
    r"""Continuous Bernoulli whose log-normaliser is computed from the logits, without clamping of probabilities.

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
    """Pyro's Categorical with floating-point draws, the dtype of data."""

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw whole numbers."""
        return super().sample(sample_shape).to(self.logits.dtype)


class BernoulliStraightThrough(dist.Bernoulli):
    """Bernoulli whose draws have the gradient of the probabilities (straight-through; Bengio et al. 2013)."""

    has_rsample = True

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw 0 or 1 with the gradient of ``probs``."""
        return self.sample(sample_shape) + (self.probs - self.probs.detach())


class OneHotGumbel(dist.OneHotCategorical):
    """A category whose draws have the gradient of their relaxation (straight-through Gumbel-softmax; Jang et al. 2017).

    A draw is the argmax of a draw from the Concrete distribution, so it has exactly the category's probabilities.
    """

    has_rsample = True

    def __init__(self, temperature: Tensor, logits: Tensor, validate_args: bool | None = None):
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        return type(self)(self.temperature, self.logits.expand(torch.Size(batch_shape) + self.event_shape), validate_args=False)

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw a corner of the simplex with the gradient of the relaxed draw."""
        soft = RelaxedOneHotCategorical(self.temperature, logits=self.logits).rsample(sample_shape)
        hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        return hard + (soft - soft.detach())

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw a category."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class BernoulliGumbel(dist.Bernoulli):
    """Bits whose draws have the gradient of their relaxation, binary Concrete (Maddison et al. 2017)."""

    has_rsample = True

    def __init__(self, temperature: Tensor, logits: Tensor, validate_args: bool | None = None):
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        return type(self)(self.temperature, self.logits.expand(batch_shape), validate_args=False)

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw 0 or 1 with the gradient of the relaxed draw."""
        soft = RelaxedBits(self.temperature, logits=self.logits).rsample(sample_shape)
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw bits."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class RelaxedOneHotCategorical(dist.RelaxedOneHotCategorical):
    """Pyro's, with draws inside the simplex: in float32 some would round to its border, where the density is NaN."""

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw a point of the simplex."""
        z = super().rsample(sample_shape)
        return z.clamp(min=torch.finfo(z.dtype).tiny)

    mean_is_exact = False

    @property
    def mean(self) -> Tensor:
        """The probabilities; the mean itself has no closed form."""
        return self.probs


class RelaxedBits(dist.RelaxedBernoulli):
    """Pyro's RelaxedBernoulli, with draws inside (0, 1): in float32 some would round to its ends."""

    arg_constraints = {"logits": constraints.real}

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw numbers between 0 and 1."""
        z = super().rsample(sample_shape)
        return z.clamp(torch.finfo(z.dtype).tiny, 1 - torch.finfo(z.dtype).eps)

    mean_is_exact = False

    @property
    def mean(self) -> Tensor:
        """The probabilities; the mean itself has no closed form."""
        return self.probs


class PartiallyObservedCategorical(dist.OneHotCategorical):
    """A one-hot categorical distribution with all its mass on the label where that is known.

    Args:
        logits: of q(y|x) where the label is unknown, ``(..., K)``.
        labels: ``(..., K)``, one-hot where the category is known, 0 elsewhere; ``None`` if none is known.
    """

    def __init__(self, logits: Tensor, labels: Tensor | None = None, validate_args: bool | None = None):
        self.predicted = dist.OneHotCategorical(logits=logits)
        self.labels = torch.zeros_like(logits) if labels is None else labels.to(logits.dtype)
        known = self.labels.sum(-1, keepdim=True) > 0
        certain = 100.0 * (self.labels - 1)  # exp(-100) is 0 in effect, with a finite logarithm
        super().__init__(logits=torch.where(known, certain, logits), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        shape = torch.Size(batch_shape) + self.event_shape
        return PartiallyObservedCategorical(self.predicted.logits.expand(shape), self.labels.expand(shape), validate_args=False)
