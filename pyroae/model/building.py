"""How priors, posteriors and likelihoods, which are recipes, become modules of one model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from ..nested import copied
from ..registry import Part

if TYPE_CHECKING:
    from .likelihoods import Likelihood
    from .priors import Prior


@dataclass(frozen=True)
class Context:
    """What a part may know of the model that it is built for.

    Args:
        event_shape: shape of one z for a prior or a posterior, of one x for a likelihood; ``None`` keeps the part's own.
        prior: the model's, for its posterior.
        guide: the model's, for its prior.
        likelihood: the model's, for its prior.
    """

    event_shape: torch.Size | None = None
    prior: "Prior | None" = None
    guide: nn.Module | None = None
    likelihood: "Likelihood | None" = None


class DistributionPart(Part):
    """A prior, posterior or likelihood: a recipe, of which every model builds a module of its own.

    The part that was given is never trained or changed by a model. What it has learned already is copied.
    """

    event_shape: torch.Size | None

    def build(self, context: Context) -> Self:
        """A module for one model: a copy, or a new one where the model has events of another shape."""
        shape = context.event_shape
        return copied(self) if shape in (None, self.event_shape) else self.replace(event_shape=tuple(shape))
