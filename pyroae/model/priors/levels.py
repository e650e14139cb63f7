"""Priors of two levels: one drawn first, and z given it."""

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from ...checks import whole_number
from ...registry import register
from ...threads import alone
from ..conditional import Conditional, Shape
from ..nets import MLP
from ..networks import apply, concat
from .base import Prior
from .plain import Normal, OneHot


class _Levels(Prior):
    """p(top) p(z|top): a subclass states ``top``, a prior, and ``below``; ``sites`` names z and the top."""

    support = constraints.real
    top: Prior
    decoder_sees_top = False  # whether the decoder sees the top beside z

    @property
    def top_size(self) -> int:
        return self.top.event_shape[0]

    @property
    def code_shape(self):
        return torch.Size([self.event_shape.numel() + self.top.event_shape[0]]) if self.decoder_sees_top else self.event_shape

    def code(self, z, top=None):
        """z, and the top behind it where the decoder sees both."""
        return concat(z, top, len(self.event_shape))[0] if self.decoder_sees_top else z

    def below(self, top: Tensor) -> dist.Distribution:
        """p(z|top)."""
        raise NotImplementedError

    def forward(self) -> dist.Distribution:
        """p(top); p(z|top) is ``below(top)``."""
        return self.top()

    def accepts(self, z):
        """Everything: z is Normal."""
        return True

    def draw(self, c=None):
        top = pyro.sample(self.sites[1], self.top())
        return self.code(pyro.sample("z", self.below(top)), top)

    def sample(self, n, c=None):
        top = self.top().sample(torch.Size([n]))
        return self.code(self.below(top).sample(), top)


@register("priors")
class Hierarchical(_Levels):
    """Two levels, p(z2) p(z|z2): a Normal z2, and a Normal z whose mean and scale come from it through a network.

    It goes with the posterior of the same name, q(z|x) q(z2|z) (Burda et al. 2016, section 5), or with TopDown,
    q(z2|x) q(z|x, z2), and then best with ``skip`` (Tomczak & Welling 2018, section 4). z2 is integrated out of p(x) like z.

    Args:
        event_shape: shape of z, the level next to x.
        top: how many numbers z2 has.
        hidden: widths of the network's hidden layers.
        activation: as in ``pa.nets.MLP``.
        skip: the decoder sees z2 too: p(x|z, z2).

    >>> import pyroae as pa
    >>> two = vae.replace(prior=Hierarchical(2, top=1), posterior=pa.posteriors.Hierarchical())
    >>> two.sample(3).shape
    torch.Size([3, 16])
    """

    sites = ("z", "z2")

    def __init__(
        self,
        event_shape: Shape | None = None,
        top: int = 4,
        hidden: int | list[int] = 128,
        activation: str = "Tanh",
        skip: bool = False,
    ):
        super().__init__(event_shape)
        whole_number("Hierarchical", top=top)
        self.decoder_sees_top = skip
        self.top, self.network_recipe = Normal(top), MLP(hidden, activation)
        if self.event_shape is not None:
            self.layer = Conditional(dist.Normal, self.event_shape)
            self.network = self.network_recipe.build(self.top.event_shape, self.layer.size)

    def below(self, top):
        return self.layer(apply(self.network, top, 1))


@register("priors")
class Clusters(_Levels):
    """A category y and, given it, a Normal z of its own: the GaussianMixture with its component as a site of the program.

    With the posterior of the same name y is summed out exactly, under TraceEnum_ELBO, and the encoder says which cluster
    an example belongs to: the Gaussian-mixture VAE (Jiang et al. 2017; Dilokthanakul et al. 2016).

    Args:
        event_shape: shape of one z, a number.
        clusters: how many; their weights, means and scales are learned.
        spread: standard deviation of the means at the start.

    >>> import pyroae as pa
    >>> mixture = vae.replace(prior=Clusters(2), posterior=pa.posteriors.Clusters())
    >>> mixture.sample(3).shape
    torch.Size([3, 16])
    """

    sites = ("z", "y")

    @alone
    def __init__(self, event_shape: Shape | None = None, clusters: int = 10, spread: float = 1.0):
        super().__init__(event_shape)
        whole_number("Clusters", clusters=clusters)
        self.top = OneHot(clusters, logits="per_dimension")
        if self.event_shape is not None:
            self.loc = nn.Parameter(spread * torch.randn(clusters, *self.event_shape))
            self.raw_scale = nn.Parameter(torch.zeros(clusters, *self.event_shape))

    def below(self, top):
        loc, scale = (torch.tensordot(top, each, 1) for each in (self.loc, self.raw_scale.exp()))
        return dist.Normal(loc, scale).to_event(len(self.event_shape))


@register("priors")
class ClassAndStyle(_Levels):
    """A class y and, independent of it, a style z ~ N(0, I); the decoder sees both: M2 (Kingma et al. 2014, eq. 2).

    With the posterior ``Clusters`` and the condition ``PartialLabels`` it learns from few labels: those of the others are
    summed out.

    Args:
        event_shape: shape of the style z, a number.
        classes: how many, equally likely.

    >>> import pyroae as pa
    >>> m2 = vae.replace(prior=ClassAndStyle(2), posterior=pa.posteriors.Clusters())
    >>> m2.sample(3).shape
    torch.Size([3, 16])
    """

    sites = ("z", "y")
    decoder_sees_top = True

    def __init__(self, event_shape: Shape | None = None, classes: int = 10):
        super().__init__(event_shape)
        whole_number("ClassAndStyle", classes=classes)
        self.top, self.style = OneHot(classes), Normal(self.event_shape)

    def below(self, top):
        return self.style()
