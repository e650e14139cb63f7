"""Distributions that Pyro lacks, or whose tails it cuts off."""

from collections.abc import Callable
from math import lgamma, log, pi

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
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


class BestScaled(dist.Normal):
    """Normals around ``loc``, all with the scale under which the values asked for are likeliest: their root mean squared error.

    Args:
        loc: the means.
        scale: the scale of draws.
        found: called with the scale that ``log_prob`` has found.
    """

    def __init__(self, loc: Tensor, scale: Tensor, found: Callable[[Tensor], None], validate_args: bool | None = None):
        self.found = found
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        return BestScaled(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.found, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Its gradient is that of the likelihood with the scale maximised out: at its best value the scale's own is 0."""
        scale = (value - self.loc).detach().square().mean().sqrt()
        self.found(scale)
        return dist.Normal(self.loc, scale).log_prob(value)


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


class Told(dist.OneHotCategorical):
    """A category as it is guessed, and for certain where it is told.

    Args:
        logits: of the guess, ``(..., K)``.
        told: ``(..., K)``, one-hot where the category is known, 0 where it is not; ``None``: nowhere.
    """

    def __init__(self, logits: Tensor, told: Tensor | None = None, validate_args: bool | None = None):
        self.guess = dist.OneHotCategorical(logits=logits)
        self.told = torch.zeros_like(logits) if told is None else told.to(logits.dtype)
        known = self.told.sum(-1, keepdim=True) > 0
        certain = 100.0 * (self.told - 1)  # exp(-100) is as good as 0, and its logarithm is finite
        super().__init__(logits=torch.where(known, certain, logits), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        shape = torch.Size(batch_shape) + self.event_shape
        return Told(self.guess.logits.expand(shape), self.told.expand(shape), validate_args=False)


class NormalMixture(dist.MixtureSameFamily):
    r"""A mixture of K diagonal Normals, whose densities at many points are two matrix products, in float64.

    :math:`\log w_k - \frac12 \sum_j (z_j^2 - 2 z_j m_{kj} + m_{kj}^2) / s_{kj}^2 - \sum_j \log s_{kj} - \frac J2 \log 2\pi`, the sums
    over j of what depends on z as products: no array of K times the numbers of all points.

    >>> weights, normals = dist.Categorical(torch.tensor([0.5, 0.5])), dist.Normal(torch.tensor([[-1.0], [1.0]]), 1.0).to_event(1)
    >>> NormalMixture(weights, normals).log_prob(torch.zeros(1)) == dist.Normal(0.0, 1.0).log_prob(torch.ones(()))
    tensor(True)
    """

    own: "NormalMixture | None" = None  # before it was expanded

    def expand(self, batch_shape, _instance=None):
        """The same mixture for a larger batch, its components kept once."""
        new = super().expand(batch_shape, _instance)
        new.own = self.own or self
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Of z, in z's own precision."""
        if self._validate_args:
            self._validate_sample(value)
        own = self.own or self
        normals = own.component_distribution.base_dist
        loc, scale = (p.flatten(1).double() for p in (normals.loc, normals.scale))
        z, precision = value.flatten(-len(self.event_shape)).double(), scale.square().reciprocal()
        constant = (loc.square() * precision + 2 * scale.log() + log(2 * pi)).sum(1)
        each = z @ (loc * precision).mT - 0.5 * (z.square() @ precision.mT + constant)
        found = (each + own.mixture_distribution.logits.double().log_softmax(-1)).logsumexp(-1).to(value.dtype)
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))


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


class InUnitInterval(constraints.Constraint):
    """A constraint narrower than the unit interval."""


class _Grey(InUnitInterval):
    """``levels`` equal steps from 0 to 1."""

    is_discrete, event_dim = True, 0

    def __init__(self, levels: int):
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        steps = value * (self.levels - 1)
        return (value >= 0) & (value <= 1) & ((steps - steps.round()).abs() < 1e-3)

    def __repr__(self) -> str:
        return f"one of {self.levels} equally spaced grey levels from 0 to 1"


class _OpenUnitInterval(InUnitInterval):
    is_discrete, event_dim = False, 0

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "greater than 0 and less than 1"


open_unit_interval = _OpenUnitInterval()


class GreyCategorical(TorchDistribution):
    """A probability for each of the grey levels 0, 1/(n - 1), ..., 1, where n is the length of ``logits`` ``(..., n)``."""

    arg_constraints = {"logits": constraints.real_vector}

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        self.logits = logits - logits.logsumexp(-1, keepdim=True)
        self.levels = logits.shape[-1]
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self):
        """Equal steps from 0 to 1."""
        return _Grey(self.levels)

    @property
    def mean(self) -> Tensor:
        """The expected grey level."""
        return self.logits.exp() @ torch.linspace(0, 1, self.levels, dtype=self.logits.dtype, device=self.logits.device)

    def expand(self, batch_shape, _instance=None):
        """The same distribution for a larger batch."""
        return GreyCategorical(self.logits.expand(torch.Size(batch_shape) + (self.levels,)))

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(x = value)."""
        index = (value * (self.levels - 1)).round().long()
        index, logits = torch.broadcast_tensors(index.unsqueeze(-1), self.logits)
        return logits.gather(-1, index[..., :1]).squeeze(-1)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw grey levels."""
        with torch.no_grad():
            drawn = torch.distributions.Categorical(logits=self.logits).sample(sample_shape)
            return drawn.to(self.logits.dtype) / (self.levels - 1)


class DiscretizedLogistic(TorchDistribution):
    r"""The mass of a Logistic around each of the grey levels 0, 1/(n - 1), ..., 1; the outermost take the tails.

    :math:`P(x) = \sigma(b) - \sigma(a)` with :math:`a, b = (x \mp \frac{1}{2(n-1)} - loc) / scale`, evaluated as
    :math:`b + \log(1 - e^{a - b}) - \log(1 + e^a) - \log(1 + e^b)`, which loses nothing in the tails
    (Kingma et al. 2016; Salimans et al. 2017, section 2.1).
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, levels: int = 256, validate_args: bool | None = None):
        self.loc, self.scale = broadcast_all(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self):
        """Equal steps from 0 to 1."""
        return _Grey(self.levels)

    @property
    def mean(self) -> Tensor:
        """The expected grey level: the sum over steps of the probability to lie above each."""
        step = 1 / (self.levels - 1)
        above = torch.zeros_like(self.loc)
        for level in range(self.levels - 1):  # one after another: all at once would be 255 times as large as x
            above = above + torch.sigmoid((self.loc - (level + 0.5) * step) / self.scale)
        return step * above

    def expand(self, batch_shape, _instance=None):
        """The same distribution for a larger batch."""
        return DiscretizedLogistic(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(x = value)."""
        half = 0.5 / (self.levels - 1)
        a, b = (value - half - self.loc) / self.scale, (value + half - self.loc) / self.scale
        between = b + (-torch.expm1(-2 * half / self.scale)).log() - F.softplus(a) - F.softplus(b)
        return torch.where(value < half, F.logsigmoid(b), torch.where(value > 1 - half, F.logsigmoid(-a), between))

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw grey levels."""
        with torch.no_grad():
            u = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
            steps = self.levels - 1
            return ((self.loc + self.scale * torch.logit(u, eps=1e-7)).clamp(0, 1) * steps).round() / steps


class _SeenOr(constraints.Constraint):
    """Another constraint, or NaN."""

    def __init__(self, base: constraints.Constraint, event_dim: int, fill: float):
        self.base, self.event_dim, self.is_discrete, self.fill = base, event_dim, base.is_discrete, fill

    def check(self, value: Tensor) -> Tensor:
        inside = value.isnan() | self.base.check(value.nan_to_num(self.fill))
        return inside.flatten(-self.event_dim).all(-1)


class Seen(TorchDistribution):
    """Independent entries of which those that are NaN were not seen: they count for nothing.

    Args:
        entries: the distribution of every single entry, batch shape ``(..., *event)``.
        event_dim: how many of its dimensions make an event.
        fill: a value inside its support, to stand where none was seen.
    """

    arg_constraints = {}

    def __init__(self, entries: dist.Distribution, event_dim: int, fill: float, validate_args: bool | None = None):
        self.entries, self.fill, self._depth = entries, fill, event_dim
        shape = entries.batch_shape
        super().__init__(shape[: len(shape) - event_dim], shape[len(shape) - event_dim :], validate_args=validate_args)

    @constraints.dependent_property
    def support(self):
        """The entries' own, or NaN."""
        return _SeenOr(self.entries.support, self._depth, self.fill)

    @property
    def mean(self) -> Tensor:
        """The entries' means."""
        return self.entries.mean

    def expand(self, batch_shape, _instance=None):
        """The same distribution for a larger batch."""
        return Seen(self.entries.expand(torch.Size(batch_shape) + self.event_shape), self._depth, self.fill)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of the entries that were seen."""
        unseen = value.isnan()
        log_p = self.entries.log_prob(value.masked_fill(unseen, self.fill)).masked_fill(unseen, 0.0)
        return log_p.flatten(-self._depth).sum(-1)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws of all entries."""
        return self.entries.sample(sample_shape)


class _Each(constraints.Constraint):
    """Each of several distributions' supports, side by side along the last dimension."""

    event_dim = 1

    def __init__(self, parts):
        self.parts, self.is_discrete = parts, any(part.support.is_discrete for part in parts)

    def check(self, value: Tensor) -> Tensor:
        pieces = value.split([part.event_shape[0] for part in self.parts], -1)
        return torch.stack([part.support.check(piece) for part, piece in zip(self.parts, pieces)]).all(0)


class Beside(TorchDistribution):
    """Independent distributions over vectors, side by side in one longer vector."""

    arg_constraints = {}

    def __init__(self, parts: list[dist.Distribution], validate_args: bool | None = None):
        self.parts = parts
        self.lengths = [part.event_shape[0] for part in parts]
        super().__init__(parts[0].batch_shape, torch.Size([sum(self.lengths)]), validate_args=validate_args)

    @constraints.dependent_property(event_dim=1)
    def support(self):
        """Each part's own."""
        return _Each(self.parts)

    @property
    def mean(self) -> Tensor:
        """The parts' means."""
        return torch.cat([part.mean for part in self.parts], -1)

    def expand(self, batch_shape, _instance=None):
        """The same distribution for a larger batch."""
        return Beside([part.expand(batch_shape) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum of the parts' log-densities."""
        return sum(part.log_prob(piece) for part, piece in zip(self.parts, value.split(self.lengths, -1)))

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws of each part."""
        return torch.cat([part.sample(sample_shape) for part in self.parts], -1)
