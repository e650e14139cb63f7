"""How a prior, posterior or likelihood, which is a recipe, becomes a module of a model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from ..nested import copied
from ..registry import Part
from .conditional import Shape, as_shape

if TYPE_CHECKING:
    from .likelihoods import Likelihood
    from .priors import Prior


@dataclass(frozen=True)
class Context:
    """What a part is built for.

    Args:
        event_shape: shape of one z for a prior or posterior, of one x for a likelihood; ``None`` keeps the part's own.
        prior: of the model, for its posterior.
        guide: of the model, for its prior.
        likelihood: of the model, for its prior.
    """

    event_shape: torch.Size | None = None
    prior: "Prior | None" = None
    guide: nn.Module | None = None
    likelihood: "Likelihood | None" = None


class DistributionPart(Part, nn.Module):
    """A prior, posterior or likelihood: a recipe from which every model builds its own module.

    A model never trains or changes the part that it is made from; learned values of the part are copied.
    """

    event_shape: torch.Size | None

    def __init__(self, event_shape: Shape | None = None):
        super().__init__()
        self.event_shape = None if event_shape is None else as_shape(event_shape, type(self).__name__)

    def build(self, context: Context) -> Self:
        """A module for one model: a copy, or a new one for events of another shape."""
        shape = context.event_shape
        return copied(self) if shape in (None, self.event_shape) else self.replace(event_shape=tuple(shape))
