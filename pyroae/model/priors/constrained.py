"""A prior on the real line, mapped to a constrained support."""

from pyro import distributions as dist
from torch.distributions import biject_to

from ...nested import copied
from ...registry import register
from .base import Prior
from .plain import SUPPORTS


@register("priors")
class Constrained(Prior):
    r"""A prior on the real line mapped to a constrained support: z = t(u), u from ``base``, t Pyro's map to the support.

    :math:`\log p(z) = \log p(u) - \log |dz / du|`. For the codes of sigmoid units, which ``pa.fit_prior`` fits with it.

    Args:
        base: the prior of u.
        support: ``"positive"``, ``"nonnegative"`` or ``"unit_interval"``, as for ``Flat``.

    >>> Constrained(pa.priors.Normal(3), "unit_interval")().sample().shape
    torch.Size([3])
    """

    def __init__(self, base: Prior, support: str = "unit_interval"):
        super().__init__(base.event_shape)
        if support not in SUPPORTS or len(base.sites) > 1 or not base.proper:
            raise ValueError(
                f"Constrained: expected a proper prior of one level and support as one of {', '.join(SUPPORTS)}, "
                f"got {type(base).__name__} and {support!r}"
            )
        self.base, self.constraint = base, SUPPORTS[support]

    def build(self, context):
        built = copied(self)
        built.base = self.base.build(context)
        built.event_shape = built.base.event_shape
        return built

    def forward(self) -> dist.Distribution:
        return dist.TransformedDistribution(self.base(), [biject_to(self.constraint)])

    def measure(self, x):
        self.base.measure(x)

    def fit_to(self, z):
        """Fits ``base`` to the codes mapped to the real line."""
        return self.base.fit_to(biject_to(self.constraint).inv(z))
