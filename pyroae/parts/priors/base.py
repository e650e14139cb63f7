"""What a prior is."""

import pyro
import torch
from pyro import distributions as dist
from torch import nn
from torch.distributions import constraints

from ...registry import Part, register_base
from ..conditional import Conditional, of_one_entry


@register_base("priors")
class Prior(Part, nn.Module):
    """A distribution over one z: ``prior()`` has batch shape ``()`` and event shape ``prior.event_shape``.

    >>> import pyroae as pa
    >>> isinstance(pa.priors.Laplace(8), Prior), pa.priors.Flat(8).proper
    (True, False)
    """

    event_shape: torch.Size | None
    proper = True  # whether it integrates to 1, so that there is something to draw and p(x) exists
    sites = ("z",)  # what it draws; the posterior must draw the same
    sized = Conditional.sized

    @property
    def code_shape(self) -> torch.Size:
        """Shape of what the decoder sees of one example: z, unless a level above it is seen too."""
        return self.event_shape

    def given(self, c: torch.Tensor | None) -> dist.Distribution:
        """p(z|y) for the condition's numbers ``c``: p(z), unless the prior is made for conditions."""
        return self()

    def code(self, z: torch.Tensor, top: torch.Tensor | None = None) -> torch.Tensor:
        """What the decoder sees, of z and the level above it if there is one."""
        return z

    def draw(self, c: torch.Tensor | None = None) -> torch.Tensor:
        """The Pyro statements that draw z inside the plate over the data; returns what the decoder sees."""
        return pyro.sample("z", self.given(c))

    def sample(self, n: int, c: torch.Tensor | None = None) -> torch.Tensor:
        """``n`` draws of what the decoder sees, ``(n, *code_shape)``."""
        return self().sample(torch.Size([n]))

    def accepts(self, z: torch.Tensor) -> bool:
        """Whether all of ``z`` ``(n, *event_shape)`` is where this prior has mass."""
        return bool(self().support.check(z).all())

    def start_from(self, x: torch.Tensor):
        """Called before training, for a prior that takes its first values from the data."""

    def meet(self, guide: nn.Module, likelihood: Conditional):
        """Called by the Autoencoder once its guide is there, for a prior that is made of the posterior."""

    @property
    def support(self) -> constraints.Constraint:
        """The constraint on a single entry of z."""
        return of_one_entry(self().support)
