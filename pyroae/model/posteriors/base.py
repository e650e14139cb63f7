"""``Posterior``, the base class of posteriors: a conditional on the encoder's output, with the prior's event shape."""

import itertools
from dataclasses import replace
from typing import Self

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ...registry import register_base
from ..building import Context, DistributionPart
from ..conditional import Conditional, describe
from ..priors import Prior


@register_base("posteriors")
class Posterior(Conditional, DistributionPart):
    """A distribution over one z given the encoder's output.

    >>> import pyroae as pa
    >>> isinstance(pa.posteriors.Delta(), Posterior)
    True
    """

    sites = ("z",)
    infer: dict = {}  # options of its site for Pyro
    needs_mask = False  # whether the encoder's output says which entries were observed

    def attach(self, model: nn.Module):
        """Called with the generative program of the Autoencoder that the posterior is part of."""

    def draw(self, h: Tensor, c: Tensor | None = None, x: Tensor | None = None) -> Tensor:
        """The Pyro statements that draw z inside the plate over the data, given the encoder's output, the condition's vectors and x."""
        return pyro.sample("z", self(h), infer=self.infer)

    def latent_mean(self, h: Tensor) -> tuple[Tensor, ...]:
        """The mean of z, and of the level above if there is one."""
        return (self(h).mean,)

    def build(self, context: Context) -> Self:
        """A module for the z of the model's prior.

        Raises:
            ValueError: prior and posterior have different shapes or sites, or the posterior draws z outside the prior's support.
        """
        if context.prior is None:
            return super().build(context)
        self._check_sites(context.prior)
        self._check_support(context.prior.support)
        built = super().build(replace(context, event_shape=context.prior.event_shape))
        built._follow(context)
        built._check_inside(context.prior)
        return built

    def _follow(self, context: Context):
        """Take from the model's other parts what depends on them."""

    def _check_sites(self, prior: Prior):
        name, shape = type(self).__name__, prior.event_shape
        if self.event_shape not in (None, shape):
            raise ValueError(
                f"posterior {name}: expected z of the prior's shape {tuple(shape)}, got {tuple(self.event_shape)}; "
                "leave the posterior's shape out and it follows the prior"
            )
        if set(self.sites) != set(prior.sites):
            raise ValueError(
                f"posterior {name}: draws {' and '.join(self.sites)}, but the prior {type(prior).__name__} {' and '.join(prior.sites)}; "
                "priors and posteriors with several levels go together, such as pa.priors.Hierarchical and pa.posteriors.Hierarchical"
            )

    @torch.no_grad()
    def _check_inside(self, prior: Prior):
        """``ValueError`` unless z drawn for random encoder outputs are in the prior's support."""
        try:
            with torch.random.fork_rng([]):
                like = next(itertools.chain(self.parameters(), self.buffers()), torch.zeros(()))
                inside = prior.accepts(self(torch.randn(16, self.size, dtype=like.dtype, device=like.device)).sample())
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise ValueError(f"posterior {type(self).__name__}: cannot draw codes for the prior {type(prior).__name__}: {error}") from error
        if not inside:
            raise ValueError(
                f"posterior {type(self).__name__}: draws z outside the support of the prior {type(prior).__name__}; "
                "use a posterior with that support, or a prior on the real line"
            )

    def _check_support(self, support: constraints.Constraint):
        if self.family.support.is_discrete and not support.is_discrete:
            raise ValueError(
                f"posterior {type(self).__name__}: draws categories or bits, but the prior's z is {describe(support)}; "
                "use the prior OneHot or Bernoulli that goes with it"
            )
        if support is not constraints.real and self.family.support is constraints.real:
            raise ValueError(
                f"posterior {type(self).__name__}: draws any real z, but the prior's z is {describe(support)}; "
                "use a prior on the real line or the posterior Delta"
            )
