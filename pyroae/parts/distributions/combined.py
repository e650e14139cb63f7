"""Distributions made of others: with entries not seen, or side by side."""

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class _SeenOr(constraints.Constraint):
    """Another constraint, or NaN."""

    def __init__(self, base: constraints.Constraint, event_dim: int, fill: float):
        self.base, self.event_dim, self.is_discrete, self.fill = base, event_dim, base.is_discrete, fill

    def check(self, value: Tensor) -> Tensor:
        inside = value.isnan() | self.base.check(value.nan_to_num(self.fill))
        return inside.flatten(-self.event_dim).all(-1)


class MaskedIndependent(TorchDistribution):
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
        return MaskedIndependent(self.entries.expand(torch.Size(batch_shape) + self.event_shape), self._depth, self.fill)

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


class Joint(TorchDistribution):
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
        return Joint([part.expand(batch_shape) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum of the parts' log-densities."""
        return sum(part.log_prob(piece) for part, piece in zip(self.parts, value.split(self.lengths, -1)))

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws of each part."""
        return torch.cat([part.sample(sample_shape) for part in self.parts], -1)
