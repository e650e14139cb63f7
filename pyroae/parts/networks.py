"""Networks: recipes that size themselves by the parts beside them, or the user's own ``nn.Module``."""

import copy
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from ..part import Part, did_you_mean


class Network(Part):
    """A recipe for a network: ``build`` gives a module from events of shape ``inputs`` to ``outputs`` numbers."""

    def build(self, inputs: torch.Size, outputs: int) -> nn.Module:
        """A fresh module, ``(..., *inputs) -> (..., outputs)``."""
        raise NotImplementedError


class MLP(Network):
    """Fully connected layers; ``hidden=[]`` is a single linear map.

    Args:
        hidden: width of the hidden layer, or of each of several.
        activation: name of a ``torch.nn`` activation, such as ``"ReLU"``, ``"Tanh"``, ``"ELU"``, ``"Sigmoid"``.
        dropout: share of hidden units set to 0 while training.

    >>> MLP([300, 150]).build(torch.Size([64]), 8)(torch.zeros(5, 64)).shape
    torch.Size([5, 8])
    """

    def __init__(self, hidden: int | Sequence[int] = 128, activation: str = "ReLU", dropout: float = 0.0):
        self.widths = [hidden] if isinstance(hidden, int) else list(hidden)
        if not all(isinstance(width, int) and width > 0 for width in self.widths):
            raise ValueError(f"MLP: expected hidden as positive whole numbers, got {hidden!r}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"MLP: expected dropout from 0 to less than 1, got {dropout!r}")
        self.activation, self.dropout = _activation(activation), dropout

    def build(self, inputs, outputs):
        widths = [prod(inputs), *self.widths]
        layers: list[nn.Module] = [nn.Flatten(-len(inputs))] if len(inputs) > 1 else []
        for width, wider in zip(widths, widths[1:]):
            layers += [nn.Linear(width, wider), self.activation()]
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
        return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def apply(network: nn.Module, x: Tensor, event_dim: int) -> Tensor:
    """``network`` on ``x`` of shape ``(..., *event)``, as a matrix of flat outputs ``(..., outputs)``.

    The network itself sees one leading dimension, whatever the particles and plates in front.
    """
    batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
    if len(batch) == 1:
        return network(x).flatten(1)
    return network(x.reshape(-1, *event)).reshape(*batch, -1)


def fit_between(network: Network | nn.Module, inputs: torch.Size, outputs: int, role: str) -> nn.Module:
    """A recipe's module, or the user's own, tried once on zeros.

    Raises:
        ValueError: not a network, or one whose input or output has the wrong size.
    """
    if isinstance(network, Network):
        return network.build(inputs, outputs)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{role}: expected a network such as pa.nets.MLP(128) or an nn.Module, got {type(network).__name__}")
    asked = f"it maps {tuple(inputs)} to {outputs} numbers"
    try:
        numbers = _tried(network, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{role}: {type(network).__name__} failed on an input of shape (2, {', '.join(map(str, inputs))}); {asked}: {error}"
        ) from error
    if numbers != outputs:
        raise ValueError(
            f"{role}: expected {outputs} numbers for each datum, got {numbers} from {type(network).__name__}; "
            f"{asked}, so change its last layer"
        )
    return network


def _tried(network: nn.Module, inputs: torch.Size) -> int:
    """How many numbers the network gives for a datum; a copy is run, so that nothing of the user's changes."""
    network = copy.deepcopy(network).eval()
    like = next(network.parameters(), torch.zeros(()))
    with torch.no_grad():
        out = network(torch.zeros(2, *inputs, dtype=like.dtype, device=like.device))
    if not isinstance(out, Tensor) or out.shape[:1] != (2,):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"expected a tensor with one row for each of the 2 inputs, got {got}")
    return out[0].numel()


def _activation(name: str) -> type[nn.Module]:
    known = {key: getattr(nn, key) for key in nn.modules.activation.__all__}
    matches = [cls for key, cls in known.items() if key.lower() == str(name).lower()]
    if not matches:
        raise ValueError(f"MLP: torch.nn has no activation {name!r}" + did_you_mean(str(name), known))
    return matches[0]
