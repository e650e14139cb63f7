"""Recipes of networks, built for the sizes that the other parts need."""

from collections.abc import Sequence
from math import isqrt, prod

import torch
from torch import Tensor, nn

from ..checks import whole_number
from ..registry import register
from .linear import Dictionary, Linear, Tied
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
class Identity(Network):
    """The input unchanged, for posteriors that have networks of their own, such as ``ProductOfExperts``.

    >>> Identity().build(torch.Size([2, 4]), 8)(torch.zeros(5, 2, 4)).shape
    torch.Size([5, 8])
    """

    def build(self, inputs, outputs, encoder=None, image=None):
        return nn.Flatten()


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
