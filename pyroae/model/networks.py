"""Building and calling the encoder and decoder, whether they are recipes or the user's own modules."""

import copy
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from ..bounded import TooManyNumbers, build_here
from .nets import Network


def apply(network: nn.Module, x: Tensor, event_dim: int, c: Tensor | None = None) -> Tensor:
    """Call the network on ``x`` of shape ``(..., *event)``; the output is flattened to ``(..., outputs)``.

    The network itself gets one batch dimension, whatever the particles and plates. ``c`` of shape ``(..., size)`` is
    concatenated to x by ``concat``.
    """
    if c is not None:
        x, event_dim = concat(x, c, event_dim)
    batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
    if len(batch) == 1:
        return network(x).flatten(1)
    return network(x.reshape(-1, *event)).reshape(*batch, -1)


def concat(x: Tensor, c: Tensor, event_dim: int) -> tuple[Tensor, int]:
    """x and c as one event, and its number of dimensions: c becomes further channels of an image, or the end of a vector."""
    x = x if event_dim in (1, 3) else x.flatten(-event_dim)
    planes = event_dim == 3
    c = c.to(x.dtype)[..., None, None].expand(*c.shape, *x.shape[-2:]) if planes else c.to(x.dtype)
    dims = 3 if planes else 1
    batch = torch.broadcast_shapes(x.shape[:-dims], c.shape[:-dims])
    return torch.cat([part.expand(*batch, *part.shape[-dims:]) for part in (x, c)], -dims), dims


def concat_shape(event: torch.Size, size: int) -> torch.Size:
    """The shape of an event after ``concat`` with a vector of that size."""
    if not size:
        return event
    return torch.Size([event[0] + size, *event[1:]] if len(event) == 3 else [prod(event) + size])


@torch.no_grad()
def init_near_identity(transforms: nn.Module):
    """Scale the weights of a flow down, so that it starts near the identity; Pyro's own initial weights are large."""
    for parameter in transforms.parameters():
        parameter.mul_(0.1)


def build(
    network: Network | nn.Module,
    inputs: torch.Size,
    outputs: int,
    role: str,
    encoder: nn.Module | None = None,
    image: Sequence[int] | None = None,
) -> nn.Module:
    """Build a recipe's module, or check the user's own by calling it on zeros; ``image`` is the shape of one x that is an image.

    Raises:
        ValueError: not a network, or one whose input or output has the wrong size.
    """
    name = type(network).__name__
    is_recipe = isinstance(network, Network)
    if is_recipe:
        network = _from_recipe(network, inputs, outputs, role, encoder, image)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{role}: expected a network such as pa.nets.MLP(128) or an nn.Module, got {type(network).__name__}")
    mapping = f"it maps {tuple(inputs)} to {outputs} numbers"
    try:
        size = _output_size(network if is_recipe else copy.deepcopy(network), inputs)  # a user's module does not change
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{role}: {name} failed on an input of shape (2, {', '.join(map(str, inputs))}); {mapping}: {error}") from error
    if size != outputs:
        raise ValueError(
            f"{role}: expected {outputs} numbers for each example, got {size} from {name}; {mapping}, so change its last layer"
        )
    return network


def _from_recipe(
    recipe: Network, inputs: torch.Size, outputs: int, role: str, encoder: nn.Module | None, image: Sequence[int] | None
) -> nn.Module:
    try:
        return build_here(lambda: recipe.build(inputs, outputs, encoder, image))
    except TooManyNumbers as error:
        raise ValueError(f"{role}: {error}") from error
    except NotImplementedError as error:
        raise ValueError(f"{role}: {error}") from error
    except TypeError as error:
        raise ValueError(
            f"{role}: {type(recipe).__name__}.build failed; it is called as build(inputs, outputs, encoder, image): {error}"
        ) from error


def _output_size(network: nn.Module, inputs: torch.Size) -> int:
    """The size of the network's output for one example, in evaluation mode."""
    like = next(network.parameters(), torch.zeros(()))
    network.eval()
    with torch.no_grad():
        out = network(torch.zeros(2, *inputs, dtype=like.dtype, device=like.device))
    network.train()
    if not isinstance(out, Tensor) or out.shape[:1] != (2,):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"expected a tensor with one row for each of the 2 inputs, got {got}")
    return out[0].numel()
