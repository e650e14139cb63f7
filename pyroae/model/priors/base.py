"""``Prior``, the base class of priors."""

import pyro
import torch
from pyro import distributions as dist
from torch.distributions import constraints

from ...registry import register_base
from ..building import DistributionPart, check_forward
from ..conditional import entry_constraint


@register_base("priors")
class Prior(DistributionPart):
    """A distribution over one z: ``prior()`` has batch shape ``()`` and event shape ``prior.event_shape``.

    >>> import pyroae as pa
    >>> isinstance(pa.priors.Laplace(8), Prior), pa.priors.Flat(8).proper
    (True, False)
    """

    proper = True  # whether it integrates to 1, so that there is something to draw and p(x) exists
    sites = ("z",)  # what it draws; the posterior must draw the same

    @property
    def top_size(self) -> int | None:
        """The size of the level above z, or ``None`` without one."""
        return None

    @property
    def code_shape(self) -> torch.Size:
        """Shape of what the decoder sees of one example: z, unless a level above it is seen too."""
        return self.event_shape

    def conditional(self, c: torch.Tensor | None) -> dist.Distribution:
        """p(z|y) for the condition's numbers ``c``: p(z), unless the prior is made for conditions."""
        return self()

    def code(self, z: torch.Tensor, top: torch.Tensor | None = None) -> torch.Tensor:
        """What the decoder sees, of z and the level above it if there is one."""
        return z

    def draw(self, c: torch.Tensor | None = None) -> torch.Tensor:
        """The Pyro statements that draw z inside the plate over the data; returns what the decoder sees."""
        return pyro.sample("z", self.conditional(c))

    def sample(self, n: int, c: torch.Tensor | None = None) -> torch.Tensor:
        """``n`` draws of what the decoder sees, ``(n, *code_shape)``."""
        return self().sample(torch.Size([n]))

    def accepts(self, z: torch.Tensor) -> bool:
        """Whether all of ``z`` ``(n, *event_shape)`` is where this prior has mass."""
        return bool(self().support.check(z).all())

    def measure(self, x: torch.Tensor):
        """Take first values from training data ``(N, *event)``, where this prior has any that depend on data."""

    @property
    def support(self) -> constraints.Constraint:
        """The constraint on a single entry of z.

        Raises:
            ValueError: ``forward`` gives something else than a distribution over one z.
        """
        check_forward(self, "prior", torch.Size(), self)
        return entry_constraint(self().support)
