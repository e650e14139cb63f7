"""Priors with two latent sites: a top level, and z given it."""

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
    """p(top) p(z|top): a subclass sets ``top``, a prior, and implements ``below``; ``sites`` names z and the top."""

    support = constraints.real
    top: Prior
    decoder_sees_top = False  # whether the top is an input of the decoder too

    @property
    def top_size(self) -> int:
        return self.top.event_shape[0]

    @property
    def code_shape(self):
        return torch.Size([self.event_shape.numel() + self.top.event_shape[0]]) if self.decoder_sees_top else self.event_shape

    def code(self, z, top=None):
        """z, followed by the top if that is an input of the decoder."""
        return concat(z, top, len(self.event_shape))[0] if self.decoder_sees_top else z

    def below(self, top: Tensor) -> dist.Distribution:
        """p(z|top)."""
        raise NotImplementedError

    def forward(self) -> dist.Distribution:
        """p(top); p(z|top) is ``below(top)``."""
        return self.top()

    def accepts(self, z):
        """Always: z is Normal."""
        return True

    def draw(self, c=None):
        top = pyro.sample(self.sites[1], self.top())
        return self.code(pyro.sample("z", self.below(top)), top)

    def sample(self, n, c=None):
        top = self.top().sample(torch.Size([n]))
        return self.code(self.below(top).sample(), top)


@register("priors")
class Hierarchical(_Levels):
    """Two levels, p(z2) p(z|z2): a Normal z2, and a Normal z whose mean and scale are a network of it.

    Its posterior is the one of the same name, q(z|x) q(z2|z) (Burda et al. 2016, section 5), or TopDown, q(z2|x) q(z|x, z2),
    which works best with ``skip`` (Tomczak & Welling 2018, section 4). z2 is integrated out of p(x) like z.

    Args:
        event_shape: shape of z, the level next to x.
        top: size of z2.
        hidden: widths of the network's hidden layers.
        activation: as in ``pa.nets.MLP``.
        skip: z2 is an input of the decoder too: p(x|z, z2).

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
    """A category y, and a Normal z given y: the GaussianMixture with its component as a site of the program.

    With the posterior of the same name y is summed out exactly under TraceEnum_ELBO, and q(y|x) assigns examples to
    clusters: the Gaussian-mixture VAE (Jiang et al. 2017; Dilokthanakul et al. 2016).

    Args:
        event_shape: shape of one z.
        clusters: number of clusters, whose weights, means and scales are learned.
        spread: standard deviation of the initial means.

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
        loc, scale = (torch.tensordot(top, values, 1) for values in (self.loc, self.raw_scale.exp()))
        return dist.Normal(loc, scale).to_event(len(self.event_shape))


@register("priors")
class ClassAndStyle(_Levels):
    """A class y and an independent style z ~ N(0, I), both inputs of the decoder: M2 (Kingma et al. 2014, eq. 2).

    With the posterior ``Clusters`` and the condition ``PartialLabels`` it learns from few labels; missing labels are summed out.

    Args:
        event_shape: shape of the style z.
        classes: number of classes, equally likely.

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
