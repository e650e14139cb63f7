"""Distributions over grey levels, and constraints inside the unit interval."""

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F


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
    :math:`b + \log(1 - e^{a - b}) - \log(1 + e^a) - \log(1 + e^b)`, which is exact in the tails
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
        for level in range(self.levels - 1):  # in a loop, since all levels at once take 255 times the memory of x
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
