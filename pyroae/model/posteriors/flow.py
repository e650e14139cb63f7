"""A posterior pushed through invertible transforms."""

import torch
from pyro import distributions as dist
from pyro.distributions import transforms
from torch import Tensor, nn

from ...checks import whole_number
from ...registry import register
from ..building import Context
from ..conditional import Shape, as_shape
from ..nets import near_identity
from .base import Posterior
from .plain import Normal


@register("posteriors")
class Flow(Posterior):
    """Another posterior pushed through inverse autoregressive transforms (Kingma et al. 2016).

    Args:
        event_shape: shape of one z.
        base: the posterior transformed; by default Normal.
        layers: how many transforms; the entries are reversed between two of them.
        hidden: width of each transform's hidden layer.

    >>> Flow(3).size, Flow(3)(torch.zeros(5, Flow(3).size)).event_shape
    (6, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, base: Posterior | None = None, layers: int = 2, hidden: int = 64):
        nn.Module.__init__(self)
        whole_number("Flow", layers=layers, hidden=hidden)
        base = base or Normal()
        self.family, self.widths, self.size = base.family, [], 0
        self.event_shape = base.event_shape if event_shape is None else as_shape(event_shape, "Flow")
        if self.event_shape is not None:
            self.base = base.build(Context(self.event_shape))
            self.widths, self.size = self.base.widths, self.base.size
            steps = [transforms.affine_autoregressive(self.event_shape[0], hidden_dims=[hidden]) for _ in range(layers)]
            self.steps = nn.ModuleList(steps)
            near_identity(self.steps)

    def forward(self, h: Tensor) -> dist.Distribution:
        """q(z|x), whose draws are fast; the density of other values takes a step for each entry."""
        order = torch.arange(self.event_shape[0], device=h.device).flip(0)
        chain = [step for each in self.steps for step in (each, transforms.Permute(order, cache_size=1))]  # each remembers its own draw
        return TransformedPosterior(self.base(h), chain)


class TransformedPosterior(dist.TransformedDistribution):
    """A transformed distribution that names a middle where a mean is asked for."""

    @property
    def middle(self) -> Tensor:
        """The transformed mean of the base: what stands where a mean is asked for, which has no formula."""
        point = self.base_dist.mean
        for step in self.transforms:
            point = step(point)
        return point

    mean = middle
