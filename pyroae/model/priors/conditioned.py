"""A prior that depends on the condition."""

import torch
from pyro import distributions as dist
from torch import Tensor

from ...registry import register
from ..conditional import Conditional, Shape, entry_constraint, pyro_family
from ..nets import MLP
from ..networks import apply
from .base import Prior


@register("priors")
class Conditioned(Prior):
    """p(z|y): a Pyro distribution whose parameters come from the condition through a network (Sohn et al. 2015).

    Args:
        event_shape: shape of one z.
        family: name of the Pyro distribution.
        hidden: widths of the network's hidden layers.
        activation: as in ``pa.nets.MLP``.

    >>> import pyroae as pa
    >>> conditional = vae.replace(prior=Conditioned(2), condition=pa.conditions.Labels(3))
    >>> conditional.sample(y=torch.tensor([0, 1, 2])).shape
    torch.Size([3, 16])
    """

    def __init__(self, event_shape: Shape | None = None, family: str = "Normal", hidden: int | list[int] = 128, activation: str = "ReLU"):
        super().__init__(event_shape)
        self.layer = Conditional(pyro_family(family, "Conditioned"), self.event_shape)
        self.network_recipe, self.network = MLP(hidden, activation), None

    def build(self, context):
        built = super().build(context)
        if context.guide is not None:
            built._attach(context.guide.condition)
        return built

    def _attach(self, condition):
        if condition is None:
            raise ValueError("Conditioned: expected an Autoencoder with a condition such as pa.conditions.Labels(10), got none")
        if self.network is None or self.network[0].in_features != condition.size:
            self.network = self.network_recipe.build(torch.Size([condition.size]), self.layer.size)

    def conditional(self, c: Tensor | None) -> dist.Distribution:
        """p(z|y), with batch shape ``(B,)``."""
        return self.layer(apply(self.network, c.to(next(self.network.parameters()).dtype), 1))

    def sample(self, n, c=None):
        return self.conditional(c).sample()

    def accepts(self, z):
        return bool(self.support.check(z).all())

    @property
    def support(self):
        """The constraint on a single entry of z."""
        return entry_constraint(self.layer.family.support)
