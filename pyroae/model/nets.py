"""Recipes of networks, built for the sizes that the other parts need."""

from collections.abc import Sequence
from math import isqrt, prod

import torch
from torch import Tensor, nn

from ..checks import whole_number
from ..registry import register
from .network import Network, activation_of, flatten, widths_of
from .spatial import Spatial

__all__ = [
    "Conv",
    "Deconv",
    "Dictionary",
    "GatedMLP",
    "Identity",
    "Linear",
    "MLP",
    "Network",
    "Residual",
    "Spatial",
    "SpectralNorm",
    "Tied",
]


def __dir__() -> list[str]:
    return __all__


class _FullyConnected(Network):
    """Fully connected hidden layers, which a subclass makes in ``layer``, and a linear output layer."""

    def __init__(self, hidden: int | Sequence[int], dropout: float):
        self.widths, self.dropout = widths_of(hidden, type(self).__name__), dropout
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"{type(self).__name__}: expected dropout from 0 to less than 1, got {dropout!r}")

    def build(self, inputs, outputs, encoder=None, image=None):
        widths = [prod(inputs), *self.widths]
        layers = flatten(inputs)
        for width, wider in zip(widths, widths[1:]):
            layers += self.layer(width, wider)
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
        return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def layer(self, inputs: int, outputs: int) -> list[nn.Module]:
        """One hidden layer."""
        raise NotImplementedError


@register("nets")
class MLP(_FullyConnected):
    """Fully connected layers; ``hidden=[]`` is a single linear map.

    Args:
        hidden: width of the hidden layer, or a list of widths.
        activation: name of a ``torch.nn`` activation, such as ``"ReLU"``, ``"Tanh"``, ``"ELU"``, ``"Sigmoid"``.
        dropout: share of hidden units set to 0 in training.

    >>> MLP([300, 150]).build(torch.Size([64]), 8)(torch.zeros(5, 64)).shape
    torch.Size([5, 8])
    """

    def __init__(self, hidden: int | Sequence[int] = 128, activation: str = "ReLU", dropout: float = 0.0):
        super().__init__(hidden, dropout)
        self.activation = activation_of(activation)

    def layer(self, inputs, outputs):
        """One hidden layer."""
        return [nn.Linear(inputs, outputs), self.activation()]


@register("nets")
class GatedMLP(_FullyConnected):
    """Fully connected layers, each multiplied by a sigmoid gate (Dauphin et al. 2017; Tomczak & Welling 2018).

    >>> GatedMLP([30, 15]).build(torch.Size([64]), 8)(torch.zeros(5, 64)).shape
    torch.Size([5, 8])
    """

    def __init__(self, hidden: int | Sequence[int] = 128, dropout: float = 0.0):
        super().__init__(hidden, dropout)

    def layer(self, inputs, outputs):
        """One hidden layer, with half of its outputs as gates of the others."""
        return [nn.Linear(inputs, 2 * outputs), nn.GLU(-1)]


@register("nets")
class Linear(Network):
    """A single linear map, as in PCA and its relatives.

    >>> Linear().build(torch.Size([64]), 8)(torch.zeros(5, 64)).shape
    torch.Size([5, 8])
    """

    def build(self, inputs, outputs, encoder=None, image=None):
        return nn.Sequential(*flatten(inputs), nn.Linear(prod(inputs), outputs))


@register("nets")
class Identity(Network):
    """The input unchanged, for posteriors that have networks of their own, such as ``ProductOfExperts``.

    >>> Identity().build(torch.Size([2, 4]), 8)(torch.zeros(5, 2, 4)).shape
    torch.Size([5, 8])
    """

    def build(self, inputs, outputs, encoder=None, image=None):
        return nn.Flatten()


@register("nets")
class Dictionary(Network):
    """A linear decoder with columns of length 1: x is a weighted sum of atoms (Olshausen & Field 1996).

    For penalties on the size of the code, which a small code with long columns would avoid.

    Args:
        tied: whether the atoms start as the rows of a linear encoder, which are scaled to length 1 for that, and all biases at 0
            (Gao et al. 2024, A.1).

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
        return nn.Sequential(*flatten(inputs), atoms)


def _linear_layers(encoder: nn.Module | None) -> list[nn.Linear]:
    return [] if encoder is None else [module for module in encoder.modules() if isinstance(module, nn.Linear)]


class _UnitColumns(nn.Linear):
    def forward(self, z: Tensor) -> Tensor:
        return nn.functional.linear(z, self.atoms, self.bias)

    @property
    def atoms(self) -> Tensor:
        """The normalised matrix."""
        return nn.functional.normalize(self.weight, dim=0)


@register("nets")
class Residual(Network):
    """A linear map to ``width`` units, then residual blocks of two layers (He et al. 2016).

    >>> Residual(32).build(torch.Size([64]), 8)(torch.zeros(5, 64)).shape
    torch.Size([5, 8])
    """

    def __init__(self, width: int = 128, blocks: int = 2, activation: str = "ReLU"):
        whole_number("Residual", width=width, blocks=blocks)
        self.width, self.blocks, self.activation = width, blocks, activation_of(activation)

    def build(self, inputs, outputs, encoder=None, image=None):
        blocks = [_Block(self.width, self.activation) for _ in range(self.blocks)]
        return nn.Sequential(
            *flatten(inputs), nn.Linear(prod(inputs), self.width), *blocks, self.activation(), nn.Linear(self.width, outputs)
        )


class _Block(nn.Module):
    def __init__(self, width: int, activation: type[nn.Module]):
        super().__init__()
        self.inner = nn.Sequential(activation(), nn.Linear(width, width), activation(), nn.Linear(width, width))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.inner(h)


@register("nets")
class SpectralNorm(Network):
    """A network whose linear and convolutional layers have matrices of spectral norm 1 (Miyato et al. 2018): a Lipschitz decoder.

    Each step of training takes one step of power iteration for every layer, whose state is in buffers.

    Args:
        network: the recipe of the network; by default ``MLP()``.

    >>> import pyroae as pa
    >>> network = SpectralNorm(pa.nets.Linear()).build(torch.Size([3]), 64)
    >>> torch.linalg.matrix_norm(network[0].weight, 2).round(decimals=2).item()
    1.0
    """

    def __init__(self, network: Network | None = None):
        self.network = network or MLP()

    def build(self, inputs, outputs, encoder=None, image=None):
        built = self.network.build(inputs, outputs, encoder, image)
        for layer in built.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=1)
        return built


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


@register("nets")
class Conv(Network):
    """Convolutions of stride 2, then a linear map: an encoder of images.

    Args:
        channels: of each convolution, which halves height and width.
        image: channels, height and width of one flat x; by default the data's, else one square channel.
        activation: as in ``MLP``.

    >>> Conv([4, 8]).build(torch.Size([64]), 8)(torch.zeros(5, 64)).shape
    torch.Size([5, 8])
    """

    def __init__(self, channels: Sequence[int] = (32, 64), image: Sequence[int] | None = None, activation: str = "ReLU"):
        self.channels, self.image, self.activation = widths_of(channels, "Conv"), image, activation_of(activation)

    def build(self, inputs, outputs, encoder=None, image=None):
        image = _image(self.image or image, inputs, len(self.channels), "Conv")
        layers: list[nn.Module] = [nn.Flatten(-len(inputs)), nn.Unflatten(-1, image)]
        for thin, thick in zip([image[0], *self.channels], self.channels):
            layers += [nn.Conv2d(thin, thick, 4, stride=2, padding=1), self.activation()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(self.channels[-1] * prod(image[1:]) // 4 ** len(self.channels), outputs))


@register("nets")
class Deconv(Network):
    """A linear map, then transposed convolutions of stride 2: a decoder of images, the mirror of ``Conv``.

    Args:
        channels: before each transposed convolution, which doubles height and width.
        image: channels, height and width of one x; by default the likelihood's or the data's, else one square channel.
        activation: as in ``MLP``.

    >>> Deconv([8, 4]).build(torch.Size([8]), 64)(torch.zeros(5, 8)).shape
    torch.Size([5, 64])
    """

    def __init__(self, channels: Sequence[int] = (64, 32), image: Sequence[int] | None = None, activation: str = "ReLU"):
        self.channels, self.image, self.activation = widths_of(channels, "Deconv"), image, activation_of(activation)

    def build(self, inputs, outputs, encoder=None, image=None):
        depth = len(self.channels)
        known = self.image or image
        image = _image(known, torch.Size([outputs]), depth, "Deconv", all_outputs=known is None)
        small = [side // 2**depth for side in image[1:]]
        layers: list[nn.Module] = [*flatten(inputs), nn.Linear(prod(inputs), self.channels[0] * prod(small))]
        layers += [nn.Unflatten(-1, (self.channels[0], *small)), self.activation()]
        for thick, thin in zip(self.channels, [*self.channels[1:], outputs // prod(image[1:])]):
            layers += [nn.ConvTranspose2d(thick, thin, 4, stride=2, padding=1), self.activation()]
        return nn.Sequential(*layers[:-1], nn.Flatten())


def _image(image: Sequence[int] | None, shape: torch.Size, halvings: int, owner: str, all_outputs: bool = True) -> tuple[int, int, int]:
    """Channels, height and width: the given ones, the event's, or those of one square channel."""
    side = isqrt(prod(shape))
    size = tuple(image or (shape if len(shape) == 3 else (1, side, side)))
    differs = prod(shape) % prod(size) or (all_outputs and prod(size) != prod(shape))
    if len(size) != 3 or differs or any(side % 2**halvings for side in size[1:]):
        raise ValueError(
            f"{owner}: expected images of {prod(shape)} numbers whose height and width can be halved {halvings} times, "
            f"got channels, height and width {size}; set image=(channels, height, width) or the number of convolutions"
        )
    return size
