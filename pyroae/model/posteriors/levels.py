"""Posteriors with two latent sites, for the priors of the same names."""

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from ...checks import whole_number
from ...registry import register
from .. import distributions
from ..building import Context
from ..conditional import Conditional, Shape
from ..nets import MLP
from ..networks import apply
from .base import Posterior
from .plain import Normal


class _Levels(Posterior):
    """A posterior with a level above z, of size ``top``, which is the prior's."""

    top: int | None

    def build(self, context):
        """As for every posterior, with the size of the upper level from the prior."""
        above = context.prior.top_size if context.prior is not None else None
        top = above or self.top
        return super(_Levels, self if self.top == top else self.replace(top=top)).build(context)


@register("posteriors")
class Hierarchical(_Levels):
    """q(z|x) q(z2|z), for the prior of the same name: ``base``, and a Normal whose mean and scale are a network of z.

    Args:
        event_shape: shape of z, the level next to x.
        hidden: widths of the network's hidden layers.
        activation: as in ``pa.nets.MLP``.
        top: size of z2; by default the prior's.
        base: q(z|x); by default Normal.

    >>> import pyroae as pa
    >>> two = vae.replace(prior=pa.priors.Hierarchical(2, top=1), posterior=Hierarchical())
    >>> two.encode(torch.zeros(3, 16)).event_shape
    torch.Size([2])
    """

    sites = ("z", "z2")

    def __init__(
        self,
        event_shape: Shape | None = None,
        hidden: int | list[int] = 128,
        activation: str = "Tanh",
        top: int | None = None,
        base: Posterior | None = None,
    ):
        base = base or Normal()
        super().__init__(event_shape=base.event_shape if event_shape is None else event_shape)
        self.top, self.family = top, base.family
        if self.event_shape is not None:
            self.base = base.build(Context(self.event_shape))
            self.param_sizes, self.size = self.base.param_sizes, self.base.size
        if top is not None and self.event_shape is not None:
            self.upper = Conditional(dist.Normal, top)
            self.network = MLP(hidden, activation).build(self.event_shape, self.upper.size)

    def forward(self, h):
        """q(z|x)."""
        return self.base(h)

    def _check_support(self, support):
        (self.arguments.get("base") or Normal())._check_support(support)

    def draw(self, h, c=None, x=None):
        z = pyro.sample("z", self(h))
        pyro.sample("z2", self.upper(apply(self.network, z, len(self.event_shape))))
        return z


class _TopDown(_Levels):
    """q(top|x) q(z|x, top): from the first part of the encoder's output, and from the rest with the top."""

    family_above: type

    def __init__(
        self,
        event_shape: Shape | None = None,
        features: int = 64,
        hidden: int | list[int] = 128,
        activation: str = "ReLU",
        top: int | None = None,
    ):
        super().__init__(dist.Normal, event_shape)
        whole_number(type(self).__name__, features=features)
        self.top = top
        if top is not None and self.event_shape is not None:
            self.upper, self.layer = Conditional(self.family_above, top), Conditional(dist.Normal, self.event_shape)
            self.network = MLP(hidden, activation).build(torch.Size([features + top]), self.layer.size)
            self.param_sizes, self.size = [self.upper.size, features], self.upper.size + features

    def below(self, features: Tensor, top: Tensor) -> dist.Distribution:
        """q(z|x, top)."""
        return self.layer(apply(self.network, features, 1, top))


@register("posteriors")
class TopDown(_TopDown):
    """q(z2|x) q(z|x, z2), for the prior Hierarchical: Normals, z2 first (Tomczak & Welling 2018, eq. 13).

    ``encode(x)`` is q(z|x, z2) at the mean of z2.

    Args:
        event_shape: shape of z, the level next to x.
        features: size of the encoder's output besides the parameters of z2.
        hidden: widths of the hidden layers of the network from these features and z2 to z.
        activation: as in ``pa.nets.MLP``.
        top: size of z2; by default the prior's.

    >>> import pyroae as pa
    >>> two = vae.replace(prior=pa.priors.Hierarchical(2, top=1), posterior=TopDown())
    >>> two.reconstruct(torch.zeros(3, 16)).shape
    torch.Size([3, 16])
    """

    sites = ("z", "z2")
    family_above = dist.Normal

    def forward(self, h):
        """q(z|x, z2) at the mean of z2."""
        above, features = h.split(self.param_sizes, -1)
        return self.below(features, self.upper(above).mean)

    def latent_mean(self, h):
        """The means of z and z2."""
        above, _ = h.split(self.param_sizes, -1)
        return self(h).mean, self.upper(above).mean

    def draw(self, h, c=None, x=None):
        above, features = h.split(self.param_sizes, -1)
        pyro.sample("z", self.below(features, pyro.sample("z2", self.upper(above))))


@register("posteriors")
class Clusters(_TopDown):
    """q(y|x) q(z|x, y), for the priors Clusters and ClassAndStyle: a category, which is summed out, and a Normal z that depends on it.

    ``encode(x).mixture_distribution.probs`` is q(y|x), which is 1 for a label that the condition PartialLabels has. The arguments
    are those of TopDown.

    >>> import pyroae as pa
    >>> mixture = vae.replace(prior=pa.priors.Clusters(2, clusters=4), posterior=Clusters())
    >>> mixture.encode(torch.zeros(3, 16)).mixture_distribution.probs.shape
    torch.Size([3, 4])
    """

    sites = ("z", "y")
    family_above = dist.OneHotCategorical

    def forward(self, h):
        """q(z|x), a mixture over the categories."""
        logits, features = h.split(self.param_sizes, -1)
        categories = torch.eye(self.top, dtype=h.dtype, device=h.device)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), self.below(features.unsqueeze(-2), categories))

    def latent_mean(self, h):
        """The mean of z in the most probable category, and that category."""
        logits, features = h.split(self.param_sizes, -1)
        y = nn.functional.one_hot(logits.argmax(-1), self.top).to(h.dtype)
        return self.below(features, y).mean, y

    def draw(self, h, c=None, x=None):
        logits, features = h.split(self.param_sizes, -1)
        y = pyro.sample("y", distributions.PartiallyObservedCategorical(logits, c), infer={"enumerate": "parallel"})
        pyro.sample("z", self.below(features, y))
