"""Posteriors of several modalities, any of which may be missing: an expert for each, a product or a mixture of them."""

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from ...registry import register
from ..building import Context
from ..conditional import Conditional, Shape
from ..distributions import NormalExperts
from ..nets import MLP
from ..networks import apply
from .base import Posterior


class Experts(Posterior):
    """A network for each part of the likelihood ``Product``, from it to the mean and scale of an expert q_m(z|x_m)."""

    needs_mask = True

    def __init__(self, event_shape: Shape | None = None, hidden: int | list[int] = 128, activation: str = "ReLU"):
        super().__init__(event_shape=event_shape)
        self.family, self.hidden, self.activation = dist.Normal, hidden, activation

    def _follow(self, context: Context):
        likelihood = context.likelihood
        if not hasattr(likelihood, "owners"):
            raise ValueError(
                f"posterior {type(self).__name__}: expected the likelihood Product, whose parts are the modalities, such as "
                "Product({'image': Bernoulli(784), 'label': Categorical(1, 10)}), "
                f"got {type(getattr(likelihood, 'of', likelihood)).__name__}"
            )
        inputs = [column.input_shape[0] for column in likelihood.columns]
        self.register_buffer("owners", likelihood.owners, persistent=False)
        if self.param_sizes[:-1] != inputs:
            self.layer = Conditional(dist.Normal, self.event_shape)
            recipe = MLP(self.hidden, self.activation)
            self.networks = nn.ModuleList(recipe.build(torch.Size([size]), self.layer.size) for size in inputs)
        self.param_sizes = [*inputs, len(likelihood.owners)]
        self.size = sum(self.param_sizes)

    def experts(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means and scales of the experts, ``(..., M, *event)``, and whether a modality is there, ``(..., M)``."""
        *inputs, observed = h.split(self.param_sizes, -1)
        values = [self.layer.values(apply(network, x, 1)) for network, x in zip(self.networks, inputs)]
        loc, scale = (torch.stack([value[name] for value in values], -1 - len(self.event_shape)) for name in ("loc", "scale"))
        count = observed.new_zeros(*observed.shape[:-1], len(self.networks)).index_add(-1, self.owners, observed)
        return loc, scale, (count > 0).to(h.dtype)


@register("posteriors")
class ProductOfExperts(Experts):
    r"""Of the modalities A that an example has: :math:`q(z|x_A) \propto N(0, I) \prod_{m \in A} q_m(z|x_m)` (Wu & Goodman 2018).

    The modalities are the parts of the likelihood ``Product``; one is missing where all its entries are NaN. Each has a fully connected
    network to an expert :math:`N(\mu_m, s_m^2)`; the posterior has precision :math:`1 + \sum_A s_m^{-2}` and mean
    :math:`\sum_A s_m^{-2} \mu_m` over that. The networks are this part's, so the encoder is ``pa.nets.Identity()``. To learn from every
    subset of the modalities, add ``pa.corruption.Modalities()``; where one has far fewer entries than another, the penalty ``Emphasis``.

    Args:
        event_shape: shape of one z.
        hidden: widths of the hidden layers of each network.
        activation: as in ``pa.nets.MLP``.

    >>> import pyroae as pa
    >>> both = pa.likelihoods.Product({"x": pa.likelihoods.Normal(3), "label": pa.likelihoods.Categorical(1, 4)})
    >>> ae = vae.replace(likelihood=both, encoder=pa.nets.Identity(), posterior=ProductOfExperts(hidden=8))
    >>> ae.encode(torch.full((2, 4), torch.nan)).stddev[0]  # nothing is there: the prior
    tensor([1., 1.], grad_fn=<SelectBackward0>)
    """

    def forward(self, h):
        loc, scale, present = self.experts(h)
        dim = loc.dim() - 1 - len(self.event_shape)
        weights = present.reshape(*present.shape, *[1] * len(self.event_shape)) / scale.square()
        precision = 1 + weights.sum(dim)
        return dist.Normal((weights * loc).sum(dim) / precision, precision.rsqrt()).to_event(len(self.event_shape))


@register("posteriors")
class MixtureOfExperts(Experts):
    r"""Of the modalities A that an example has: :math:`q(z|x_A) = \frac{1}{|A|} \sum_{m \in A} q_m(z|x_m)` (Shi et al. 2019, section 3.2).

    As ``ProductOfExperts``; where nothing is there it is N(0, I). A draw is one of a randomly chosen expert, whose gradient passes. The
    paper's objective is ``pa.objectives.IWAE``.

    >>> import pyroae as pa
    >>> both = pa.likelihoods.Product({"x": pa.likelihoods.Normal(3), "label": pa.likelihoods.Categorical(1, 4)})
    >>> ae = vae.replace(likelihood=both, encoder=pa.nets.Identity(), posterior=MixtureOfExperts(hidden=8))
    >>> ae.encode(torch.zeros(2, 4)).component_distribution.batch_shape
    torch.Size([2, 2])
    """

    def forward(self, h):
        loc, scale, present = self.experts(h)
        there = present.reshape(*present.shape, *[1] * len(self.event_shape)) > 0
        normals = dist.Normal(torch.where(there, loc, 0.0), torch.where(there, scale, 1.0)).to_event(len(self.event_shape))
        nothing = (present.sum(-1, keepdim=True) == 0).to(present.dtype)
        return NormalExperts(dist.Categorical(present + nothing), normals)
