"""The base class of networks, and what their constructors share."""

from collections.abc import Sequence

import torch
from torch import nn

from ..checks import did_you_mean
from ..registry import Part, members, register_base


@register_base("nets")
class Network(Part):
    """A recipe for a network: ``build`` makes a module that maps events of shape ``inputs`` to ``outputs`` numbers.

    >>> import pyroae as pa
    >>> isinstance(pa.nets.MLP(), Network)
    True
    """

    def build(self, inputs: torch.Size, outputs: int, encoder: nn.Module | None = None, image: Sequence[int] | None = None) -> nn.Module:
        """A new module, ``(..., *inputs) -> (..., outputs)``.

        Args:
            inputs: shape of one input.
            outputs: size of one output.
            encoder: of the model, for a decoder.
            image: channels, height and width of one x that is an image.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement build(inputs, outputs, encoder=None, image=None)")


def widths_of(widths: int | Sequence[int], owner: str) -> list[int]:
    """Widths of hidden layers as a list; ``ValueError`` unless they are positive."""
    result = [widths] if isinstance(widths, int) else list(widths)
    if not all(isinstance(width, int) and width > 0 for width in result):
        raise ValueError(f"{owner}: expected widths as positive whole numbers, got {widths!r}")
    return result


def flatten(inputs: torch.Size) -> list[nn.Module]:
    """The layer that flattens inputs of that shape, if they are no vectors."""
    return [nn.Flatten(-len(inputs))] if len(inputs) > 1 else []


def activation_of(name: str) -> type[nn.Module]:
    """The class of an activation, whatever its case; ``ValueError`` names the closest one."""
    known = {key.lower(): cls for key, cls in members("activations").items()}
    if str(name).lower() not in known:
        raise ValueError(f"activation: there is no activation {name!r}" + did_you_mean(str(name), members("activations")))
    return known[str(name).lower()]
