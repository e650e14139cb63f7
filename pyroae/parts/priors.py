"""Priors p(z): conditionals that need no network."""

import copy

import torch
from pyro import distributions as dist
from torch import nn
from torch.distributions import Transform, constraints

from ..part import Part
from .conditional import Conditional, Shape, as_shape, of_one_entry


class Prior(Part, nn.Module):
    """A distribution over one z: ``prior()`` has batch shape ``()`` and event shape ``prior.event_shape``."""

    event_shape: torch.Size | None
    proper = True  # whether it integrates to 1, so that there is something to draw and p(x) exists
    sized = Conditional.sized

    @property
    def support(self) -> constraints.Constraint:
        """The constraint on a single entry of z."""
        return of_one_entry(self().support)


class Normal(Conditional, Prior):
    """Independent Normals, N(loc, scale^2) in each dimension; fixed, or with ``"learned"`` ones.

    >>> Normal(8)().event_shape
    torch.Size([8])
    """

    def __init__(self, event_shape: Shape | None = None, loc: float | str = 0.0, scale: float | str = 1.0):
        super().__init__(dist.Normal, event_shape, loc=loc, scale=scale)


class Laplace(Conditional, Prior):
    r"""Independent Laplaces, for sparse codes: with a Delta posterior an L1 penalty of weight 1 / scale.

    :math:`-\log p(z) = \sum_j |z_j - loc| / scale + \log(2\,scale)`.
    """

    def __init__(self, event_shape: Shape | None = None, loc: float | str = 0.0, scale: float | str = 1.0):
        super().__init__(dist.Laplace, event_shape, loc=loc, scale=scale)


class Flat(Prior):
    """Improper: log p(z) = 0 everywhere on its support, a name in ``torch.distributions.constraints``.

    What a classical autoencoder assumes of its code. ``support="unit_interval"`` makes a ``Delta`` posterior's code
    sigmoid. There is nothing to sample from, and log p(x) does not exist.

    >>> Flat(3)().log_prob(torch.ones(2, 3))
    tensor([0., 0.])
    """

    proper = False

    def __init__(self, event_shape: Shape | None = None, support: str = "real"):
        nn.Module.__init__(self)
        self.event_shape = None if event_shape is None else as_shape(event_shape, "Flat")
        self.limit = getattr(constraints, support, None)
        if not isinstance(self.limit, constraints.Constraint) or self.limit.event_dim != 0:
            raise ValueError(
                f"Flat: expected the name of a constraint on one number, such as 'real', 'positive' or 'unit_interval', got {support!r}"
            )

    def forward(self) -> dist.Distribution:
        return dist.ImproperUniform(constraints.independent(self.limit, len(self.event_shape)), torch.Size(), self.event_shape)


class Given(Prior):
    """Any Pyro distribution, as it is.

    Its batch shape, if any, counts as part of the event; the parameters of its transforms are trained.

    >>> Given(dist.StudentT(3.0, torch.zeros(8), 1.0))().event_shape
    torch.Size([8])
    """

    def __init__(self, distribution: dist.Distribution):
        nn.Module.__init__(self)
        if not isinstance(distribution, torch.distributions.Distribution):
            raise ValueError(
                f"prior: expected a part such as pa.priors.Normal(8) or a Pyro distribution, got {type(distribution).__name__}"
            )
        self.distribution = distribution
        self.event_shape = distribution.batch_shape + distribution.event_shape
        if len(self.event_shape) == 0:
            raise ValueError(
                f"prior: expected a distribution over vectors, got one over single numbers; use .expand([size]) on {distribution}"
            )
        self.learned = nn.ModuleList(_modules(distribution))

    def sized(self, event_shape):
        return self

    def forward(self) -> dist.Distribution:
        return self.distribution.to_event(len(self.distribution.batch_shape))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.distribution = _mapped(self.distribution, fn)
        return self


def _held(value) -> list:
    """What a distribution or transform holds, one level down."""
    if isinstance(value, (list, tuple)):
        return list(value)
    holds = isinstance(value, (torch.distributions.Distribution, Transform)) and not isinstance(value, nn.Module)
    return list(vars(value).values()) if holds else []


def _modules(value) -> list[nn.Module]:
    if isinstance(value, nn.Module):
        return [value]
    return [module for item in _held(value) for module in _modules(item)]


def _mapped(value, fn):
    """A copy of a distribution with ``fn`` applied to every tensor in it that no module owns."""
    if isinstance(value, torch.Tensor):
        return fn(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, fn) for item in value)
    if not _held(value):
        return value
    copied = copy.copy(value)
    copied.__dict__.update({name: _mapped(item, fn) for name, item in vars(value).items()})
    return copied
