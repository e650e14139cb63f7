"""Linear networks: one map, dictionaries with columns of length 1, decoders with the encoder's matrices."""

from math import prod

import torch
from torch import Tensor, nn

from ..registry import register
from .network import Network, activation_of, flatten


@register("nets")
class Linear(Network):
    """A single linear map, as in PCA and its relatives.

    Args:
        centred: whether a learned centre is subtracted from x first, which the decoder ``Dictionary(tied=True)`` adds again.

    >>> Linear().build(torch.Size([64]), 8)(torch.zeros(5, 64)).shape
    torch.Size([5, 8])
    """

    def __init__(self, centred: bool = False):
        self.centred = centred

    def build(self, inputs, outputs, encoder=None, image=None):
        return nn.Sequential(*flatten(inputs), (_Centred if self.centred else nn.Linear)(prod(inputs), outputs))


class _Centred(nn.Linear):
    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.centre = nn.Parameter(torch.zeros(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias - self.weight @ self.centre)  # no gradient for each x


@register("nets")
class Dictionary(Network):
    """A linear decoder with columns of length 1: x is a weighted sum of atoms (Olshausen & Field 1996).

    For penalties on the size of the code, which a small code with long columns would avoid.

    Args:
        tied: whether the atoms start as the rows of a linear encoder, which are scaled to length 1 for that, and all biases at 0
            (Gao et al. 2024, A.1); the centre of an encoder ``Linear(centred=True)`` is then the bias here too (eq. 1).

    >>> atoms = Dictionary().build(torch.Size([3]), 64)
    >>> atoms(torch.eye(3)).sub(atoms(torch.zeros(1, 3))).norm(dim=1).round(decimals=4)
    tensor([1., 1., 1.], grad_fn=<RoundBackward1>)
    """

    def __init__(self, tied: bool = False):
        self.tied = tied

    def build(self, inputs, outputs, encoder=None, image=None):
        atoms = _UnitColumns(prod(inputs), outputs)
        if self.tied:
            layer = next(reversed(_linear_layers(encoder)), None)
            if layer is None or layer.weight.shape != (prod(inputs), outputs):
                raise ValueError(f"Dictionary: expected a linear encoder of {outputs} to {prod(inputs)} numbers, such as pa.nets.Linear()")
            with torch.no_grad():
                layer.weight.copy_(nn.functional.normalize(layer.weight, dim=1))
                atoms.weight.copy_(layer.weight.T)
                for bias in (layer.bias, atoms.bias):
                    bias.zero_()
            if isinstance(layer, _Centred):
                atoms.share(layer)
        return nn.Sequential(*flatten(inputs), atoms)


def _linear_layers(encoder: nn.Module | None) -> list[nn.Linear]:
    return [] if encoder is None else [module for module in encoder.modules() if isinstance(module, nn.Linear)]


class _UnitColumns(nn.Linear):
    _centred: tuple[_Centred, ...] = ()

    def share(self, encoder: _Centred):
        """The encoder's centre in place of a bias of this module."""
        self._centred, self.bias = (encoder,), None

    def forward(self, z: Tensor) -> Tensor:
        return nn.functional.linear(z, self.atoms, self._centred[0].centre if self._centred else self.bias)

    @property
    def atoms(self) -> Tensor:
        """The normalised matrix."""
        return nn.functional.normalize(self.weight, dim=0)


@register("nets")
class Tied(Network):
    """A decoder with the encoder's transposed matrices in reverse order, and its own biases.

    For an encoder of fully connected layers and the posterior Delta. A matrix's gradient is the sum of both uses.

    >>> import pyroae as pa
    >>> ae = pa.recipes.autoencoder(pa.data.load(torch.rand(20, 16)), latent_dim=2).replace(decoder=Tied())
    >>> ae.decode(torch.zeros(3, 2)).event_shape
    torch.Size([16])
    """

    def __init__(self, activation: str = "ReLU"):
        self.activation = activation_of(activation)

    def build(self, inputs, outputs, encoder=None, image=None):
        layers = _linear_layers(encoder)
        if not layers or layers[-1].out_features != prod(inputs) or layers[0].in_features != outputs:
            got = f"{layers[0].in_features} and {layers[-1].out_features}" if layers else "no linear layer"
            raise ValueError(
                f"Tied: expected an encoder of fully connected layers from {outputs} to {prod(inputs)} numbers, got {got}; "
                "use an MLP encoder, the posterior Delta and a likelihood with one parameter for each entry"
            )
        stack = flatten(inputs)
        for layer in layers[::-1]:
            stack += [_Transposed(layer), self.activation()]
        return nn.Sequential(*stack[:-1])


class _Transposed(nn.Module):
    def __init__(self, layer: nn.Linear):
        super().__init__()
        self._layer = (layer,)  # the encoder's: no parameter of this module
        self.in_features = layer.out_features
        self.bias = nn.Parameter(torch.zeros(layer.in_features))

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.linear(h, self._layer[0].weight.t(), self.bias)


def layers(network: nn.Module) -> list[nn.Sequential]:
    """The layers of a fully connected network, each with its activation; modules are shared, not copied.

    Raises:
        ValueError: the network is not fully connected.
    """
    stack = list(network) if isinstance(network, nn.Sequential) else [network]
    starts = [i for i, module in enumerate(stack) if isinstance(module, (nn.Linear, _Transposed))]
    others = [module for i, module in enumerate(stack) if i not in starts]
    if not starts or any(module.state_dict() for module in others):
        raise ValueError(
            f"expected a stack of fully connected layers such as pa.nets.MLP or pa.nets.Tied makes, got {type(network).__name__}"
        )
    ends = [*starts[1:], len(stack)]
    return [nn.Sequential(*stack[start:end]) for start, end in zip([0, *starts[1:]], ends)]


def matrix(layer: nn.Module) -> Tensor:
    """The matrix of a linear layer, ``(outputs, inputs)``."""
    if isinstance(layer, _Transposed):
        return layer._layer[0].weight.t()
    return layer.atoms if isinstance(layer, _UnitColumns) else layer.weight
