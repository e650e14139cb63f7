"""A posterior pushed through invertible transforms."""

import torch
from pyro import distributions as dist
from pyro.distributions import transforms
from torch import Tensor, nn

from ...checks import whole_number
from ...registry import register
from ..building import Context
from ..conditional import Shape
from ..networks import init_near_identity
from .base import Posterior
from .plain import Normal


@register("posteriors")
class Flow(Posterior):
    """A posterior followed by learned transforms, the same for all x.

    Args:
        event_shape: shape of one z.
        base: the posterior that is transformed; by default Normal.
        layers: number of transforms, with the entries reversed after each.
        hidden: width of each transform's hidden layer; of ``"iaf"`` alone.
        kind: ``"iaf"``, inverse autoregressive (Kingma et al. 2016), or ``"planar"`` or ``"radial"`` (Rezende & Mohamed 2015). These two
            have the density of their own draws alone: scores that need it elsewhere (``pa.aggregate``) refuse them.

    >>> Flow(3).size, Flow(3)(torch.zeros(5, Flow(3).size)).event_shape
    (6, torch.Size([3]))
    """

    def __init__(
        self, event_shape: Shape | None = None, base: Posterior | None = None, layers: int = 2, hidden: int = 64, kind: str = "iaf"
    ):
        base = base or Normal()
        super().__init__(event_shape=base.event_shape if event_shape is None else event_shape)
        whole_number("Flow", layers=layers, hidden=hidden)
        if kind not in _MAKERS:
            raise ValueError(f"posterior Flow: expected kind as one of {', '.join(_MAKERS)}, got {kind!r}")
        self.family = base.family
        if self.event_shape is not None:
            self.base = base.build(Context(self.event_shape))
            self.param_sizes, self.size = self.base.param_sizes, self.base.size
            self.steps = nn.ModuleList(_MAKERS[kind](self.event_shape[0], hidden) for _ in range(layers))
            init_near_identity(self.steps)

    def forward(self, h: Tensor) -> dist.Distribution:
        """q(z|x), whose draws are fast; the density of other values takes one pass per entry."""
        order = torch.arange(self.event_shape[0], device=h.device).flip(0)
        chain = [t for step in self.steps for t in (step, transforms.Permute(order, cache_size=1))]  # a draw's density is from the caches
        return TransformedPosterior(self.base(h), chain)


_MAKERS = {
    "iaf": lambda size, hidden: transforms.affine_autoregressive(size, hidden_dims=[hidden]),
    "planar": lambda size, hidden: transforms.planar(size),
    "radial": lambda size, hidden: transforms.radial(size),
}


class TransformedPosterior(dist.TransformedDistribution):
    """A transformed distribution whose ``mean`` is the transformed mean of its base; its own mean has no closed form."""

    mean_is_exact = False

    @property
    def mean(self) -> Tensor:
        """The transformed mean of the base."""
        point = self.base_dist.mean
        for step in self.transforms:
            point = step(point)
        return point
