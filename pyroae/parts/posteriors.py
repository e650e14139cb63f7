"""Posteriors q(z|x): conditionals on the encoder's output, sized by the prior."""

from pyro import distributions as dist
from torch.distributions import constraints

from ..part import Part
from .conditional import Conditional, Shape, in_words, pyro_family
from .priors import Prior


class Posterior(Conditional, Part):
    """A distribution over one z given the encoder's output."""

    def fitted(self, prior: Prior) -> "Posterior":
        """This posterior for that prior's z.

        Raises:
            ValueError: the two disagree on the shape of z, or the posterior draws z where the prior has no mass.
        """
        name, shape = type(self).__name__, prior.event_shape
        if self.event_shape not in (None, shape):
            raise ValueError(
                f"posterior {name}: expected z of the prior's shape {tuple(shape)}, got {tuple(self.event_shape)}; "
                "leave the posterior's shape out and it follows the prior"
            )
        return self._within(prior.support).sized(shape)

    def _within(self, support: constraints.Constraint) -> "Posterior":
        if support is not constraints.real and self.family.support is constraints.real:
            raise ValueError(
                f"posterior {type(self).__name__}: draws any real z, but the prior's z is {in_words(support)}; "
                f"use a prior on the real line or the posterior Delta"
            )
        return self


class Normal(Posterior):
    """Independent Normals: mean and scale from the encoder, or with a fixed or learned scale."""

    def __init__(self, event_shape: Shape | None = None, scale: float | str | None = None):
        super().__init__(dist.Normal, event_shape, scale=scale)


class Delta(Posterior):
    """A point: the code itself, as in every deterministic autoencoder.

    It takes its support from the prior: one on the unit interval makes the code sigmoid, one on the positive numbers
    exponential.
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.Delta, event_shape, limits={"v": constraints.real})

    def _within(self, support):
        within = self.remade()
        within.limits = {"v": support}
        return within

    def sized(self, event_shape):
        sized = super().sized(event_shape)
        sized.limits = self.limits
        return sized


class FromPyro(Posterior):
    """Any Pyro distribution by name; what is not given as a keyword comes from the encoder."""

    def __init__(self, family: str | type, event_shape: Shape | None = None, **parameters):
        super().__init__(pyro_family(family, "FromPyro"), event_shape, **parameters)
