"""Distributions made of others: with missing entries, or concatenated."""

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class _OrMissing(constraints.Constraint):
    """Another constraint, or NaN."""

    def __init__(self, base: constraints.Constraint, event_dim: int, fill: float):
        self.base, self.event_dim, self.is_discrete, self.fill = base, event_dim, base.is_discrete, fill

    def check(self, value: Tensor) -> Tensor:
        inside = value.isnan() | self.base.check(value.nan_to_num(self.fill))
        return inside.flatten(-self.event_dim).all(-1)


class MaskedIndependent(TorchDistribution):
    """Independent entries; those that are NaN are missing and ignored.

    Args:
        entries: the distribution of the entries, batch shape ``(..., *event)``.
        event_dim: number of its dimensions that make an event.
        fill: a value inside the support, used for missing entries.
    """

    arg_constraints = {}

    def __init__(self, entries: dist.Distribution, event_dim: int, fill: float, validate_args: bool | None = None):
        self.entries, self.fill, self._depth = entries, fill, event_dim
        shape = entries.batch_shape
        super().__init__(shape[: len(shape) - event_dim], shape[len(shape) - event_dim :], validate_args=validate_args)

    @constraints.dependent_property
    def support(self):
        """The entries' support, or NaN."""
        return _OrMissing(self.entries.support, self._depth, self.fill)

    @property
    def mean(self) -> Tensor:
        """The entries' means."""
        return self.entries.mean

    def expand(self, batch_shape, _instance=None):
        """The same distribution for a larger batch."""
        return MaskedIndependent(self.entries.expand(torch.Size(batch_shape) + self.event_shape), self._depth, self.fill)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of the observed entries."""
        missing = value.isnan()
        log_p = self.entries.log_prob(value.masked_fill(missing, self.fill)).masked_fill(missing, 0.0)
        return log_p.flatten(-self._depth).sum(-1)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws of all entries."""
        return self.entries.sample(sample_shape)


class _JointSupport(constraints.Constraint):
    """The supports of the parts, each for its entries of the vector."""

    event_dim = 1

    def __init__(self, joint: "Joint"):
        self.joint, self.is_discrete = joint, any(part.support.is_discrete for part in joint.parts)

    def check(self, value: Tensor) -> Tensor:
        return torch.stack([part.support.check(piece) for part, piece in self.joint.pieces(value)]).all(0)


class Joint(TorchDistribution):
    """Independent distributions over vectors, concatenated to one vector, with an optional permutation.

    Args:
        parts: the distributions.
        order: ``(D,)``, the index in the vector of each entry of the concatenated parts.
        back: ``(D,)``, the inverse permutation.
        names: of the parts.
    """

    arg_constraints = {}

    def __init__(
        self,
        parts: list[dist.Distribution],
        order: Tensor | None = None,
        back: Tensor | None = None,
        names: list[str] | None = None,
        validate_args: bool | None = None,
    ):
        self.parts, self.order, self.back, self.names = parts, order, back, names
        self.lengths = [part.event_shape[0] for part in parts]
        super().__init__(parts[0].batch_shape, torch.Size([sum(self.lengths)]), validate_args=validate_args)

    def pieces(self, value: Tensor) -> list[tuple[dist.Distribution, Tensor]]:
        """Each part with its entries of a vector."""
        value = value if self.order is None else value.index_select(-1, self.order)
        return list(zip(self.parts, value.split(self.lengths, -1)))

    def join(self, pieces: list[Tensor]) -> Tensor:
        """The vector of the parts' entries."""
        value = torch.cat(pieces, -1)
        return value if self.back is None else value.index_select(-1, self.back)

    @constraints.dependent_property(event_dim=1)
    def support(self):
        """The parts' supports."""
        return _JointSupport(self)

    @property
    def mean(self) -> Tensor:
        """The parts' means."""
        return self.join([part.mean for part in self.parts])

    def expand(self, batch_shape, _instance=None):
        """The same distribution for a larger batch."""
        return Joint([part.expand(batch_shape) for part in self.parts], self.order, self.back, self.names)

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum of the parts' log-densities."""
        return sum(part.log_prob(piece) for part, piece in self.pieces(value))

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws of each part."""
        return self.join([part.sample(sample_shape) for part in self.parts])
