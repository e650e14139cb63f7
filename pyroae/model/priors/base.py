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

    proper = True  # whether it integrates to 1; otherwise it cannot be drawn from, and p(x) does not exist
    sites = ("z",)  # the latent sites, the same as the posterior's

    @property
    def top_size(self) -> int | None:
        """The size of the level above z, if there is one."""
        return None

    @property
    def code_shape(self) -> torch.Size:
        """Shape of the decoder's input of one example: z, for some priors with the level above."""
        return self.event_shape

    def conditional(self, c: torch.Tensor | None) -> dist.Distribution:
        """p(z|y) for the condition's vectors ``c``: p(z), unless the prior depends on conditions."""
        return self()

    def code(self, z: torch.Tensor, top: torch.Tensor | None = None) -> torch.Tensor:
        """The decoder's input, of z and the level above it."""
        return z

    def draw(self, c: torch.Tensor | None = None) -> torch.Tensor:
        """The Pyro statements that draw z inside the plate over the data; returns the decoder's input."""
        return pyro.sample("z", self.conditional(c))

    def sample(self, n: int, c: torch.Tensor | None = None) -> torch.Tensor:
        """``n`` draws of the decoder's input, ``(n, *code_shape)``."""
        return self().sample(torch.Size([n]))

    def frozen(self) -> "Prior":
        """The same prior while no parameter changes: itself, or one that has computed its distribution already."""
        return self

    def accepts(self, z: torch.Tensor) -> bool:
        """Whether ``z``, ``(n, *event_shape)``, is in the support."""
        return bool(self().support.check(z).all())

    def measure(self, x: torch.Tensor):
        """Set initial values from training data ``(N, *event)``, if some depend on data."""

    def fit_to(self, z: torch.Tensor) -> bool:
        """Set learned parameters from codes ``z`` ``(N, *event_shape)``; returns whether the result maximises their likelihood.

        If not, it is where ``fit_prior`` starts.
        """
        return False

    @property
    def support(self) -> constraints.Constraint:
        """The constraint on a single entry of z.

        Raises:
            ValueError: the forward method gives something else than a distribution over one z.
        """
        check_forward(self, "prior", torch.Size(), self)
        return entry_constraint(self().support)
