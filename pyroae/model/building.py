"""How a prior, posterior or likelihood, which is a recipe, becomes a module of a model."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

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
        likelihood: of what the encoder sees, for the prior and the posterior.
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
        if shape in (None, self.event_shape):
            return copied(self)
        if "event_shape" not in inspect.signature(type(self)).parameters:
            raise ValueError(
                f"{type(self).__name__}: expected a constructor that takes event_shape and gives it to super().__init__(...), "
                f"so that it can be built for events of shape {tuple(shape)}"
            )
        return self.replace(event_shape=tuple(shape))


def check_part(part: Any, kind: type, role: str, example: str):
    """``ValueError`` for what is not a part of that kind, or one whose constructor did not call ``super().__init__``."""
    if not isinstance(part, kind):
        raise ValueError(f"{role}: expected a part such as {example}, got {part!r}")
    if isinstance(part, nn.Module) and "_parameters" not in vars(part):
        raise ValueError(f"{role} {type(part).__name__}: expected its constructor to call super().__init__(...) first")


@torch.no_grad()
def check_forward(part: DistributionPart, role: str, batch: torch.Size, forward: Callable[[], Any]):
    """``ValueError`` unless ``forward()`` gives a distribution of that batch shape over events of the part's shape."""
    owner = f"{role} {type(part).__name__}"
    try:
        result = forward()
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{owner}: its forward failed: {type(error).__name__}: {error}") from error
    if not isinstance(result, torch.distributions.Distribution):
        raise ValueError(f"{owner}: expected its forward to return a Pyro distribution, got {type(result).__name__}")
    if (result.batch_shape, result.event_shape) != (batch, part.event_shape):
        raise ValueError(
            f"{owner}: expected its forward to return a distribution of batch shape {tuple(batch)} and event shape "
            f"{tuple(part.event_shape)}, got {tuple(result.batch_shape)} and {tuple(result.event_shape)}; "
            "dimensions of one event are declared by .to_event(n)"
        )
