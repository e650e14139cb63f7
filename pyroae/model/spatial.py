"""A decoder of coordinates, so that images are rotated, moved and scaled by latent variables of their own."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..registry import register
from .network import Network, activation_of, widths_of


@register("nets")
class Spatial(Network):
    r"""A decoder of images as functions of coordinates, with the pose of the object among the latents (Bepler et al. 2019, section 2).

    The pixel at c in [-1, 1] x [-1, 1] is :math:`g(e^{-s} R(-\phi) (c - t), z)`, g a fully connected network, R a rotation: what g draws
    is scaled by :math:`e^s`, turned by :math:`\phi` counter-clockwise and moved by t. The first entries of the code are the pose in units
    of its standard deviations, in the order angle, shift to the right, shift upwards, scale, without those that are 0 here; the others are
    z. So with the prior ``Normal`` the angle is :math:`N(0, rotation^2)`, and so on; ``ae.decoder.pose`` gives it in radians.

    Args:
        hidden: width of the hidden layers of g, or a list of widths.
        rotation: standard deviation of the angle, in radians; 0 for none.
        translation: standard deviation of each shift; 1 is half of the image.
        scaling: standard deviation of s.
        activation: as in ``MLP``.
        image: channels, height and width of one flat x; by default the likelihood's or the data's.

    >>> import pyroae as pa
    >>> vae = pa.recipes.vae(pa.data.load("digits"), latent_dim=5).replace(decoder=Spatial(16))
    >>> sorted(vae.decoder.pose(torch.zeros(3, 5)))
    ['angle', 'shift']
    >>> vae.sample(3).shape
    torch.Size([3, 64])
    """

    def __init__(
        self,
        hidden: int | Sequence[int] = (64, 64),
        rotation: float = math.pi / 4,
        translation: float = 0.1,
        scaling: float = 0.0,
        activation: str = "Tanh",
        image: Sequence[int] | None = None,
    ):
        self.widths, self.image, self.activation = widths_of(hidden, "Spatial"), image, activation_of(activation)
        self.rotation, self.translation, self.scaling = rotation, translation, scaling
        if min(rotation, translation, scaling) < 0 or not self.widths:
            raise ValueError(f"Spatial: expected standard deviations of at least 0, got {rotation!r}, {translation!r} and {scaling!r}")

    def build(self, inputs, outputs, encoder=None, image=None):
        image = self.image or image
        if image is None or outputs % math.prod(image[1:]):
            raise ValueError(f"Spatial: expected images, got {outputs} numbers; set image=(channels, height, width)")
        return _Spatial(self, inputs.numel(), outputs // math.prod(image[1:]), *image[1:])


class _Spatial(nn.Module):
    def __init__(self, recipe: Spatial, inputs: int, channels: int, height: int, width: int):
        super().__init__()
        units = {"angle": [recipe.rotation], "shift": [recipe.translation] * 2, "scale": [recipe.scaling]}
        self.units = {name: values for name, values in units.items() if values[0]}
        self.sizes = [len(values) for values in self.units.values()]
        if inputs <= sum(self.sizes):
            raise ValueError(f"Spatial: expected more latent dimensions than the {sum(self.sizes)} of the pose, got {inputs}")
        first, *rest = recipe.widths
        self.of_place, self.of_code = nn.Linear(2, first), nn.Linear(inputs - sum(self.sizes), first, bias=False)
        layers: list[nn.Module] = [recipe.activation()]
        for narrow, wide in zip(recipe.widths, rest):
            layers += [nn.Linear(narrow, wide), recipe.activation()]
        self.rest = nn.Sequential(*layers, nn.Linear(recipe.widths[-1], channels))
        across, down = (torch.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in (width, height))
        places = torch.stack(torch.meshgrid(across, -down, indexing="xy"), -1).reshape(-1, 2)  # (pixels, 2): right, up
        self.register_buffer("places", places, persistent=False)

    def pose(self, z: Tensor) -> dict[str, Tensor]:
        """The angle in radians, the shift to the right and upwards, and the scale of codes ``(..., latent_dim)``."""
        parts = z.flatten(1)[:, : sum(self.sizes)].split(self.sizes, -1)
        values = {name: part * part.new_tensor(self.units[name]) for name, part in zip(self.units, parts)}
        values |= {"angle": values["angle"][:, 0]} if "angle" in values else {}
        return values | ({"scale": values["scale"][:, 0].exp()} if "scale" in values else {})

    def forward(self, z: Tensor) -> Tensor:
        pose, code = self.pose(z), z.flatten(1)[:, sum(self.sizes) :]
        places = self.places.expand(len(z), -1, -1)  # (B, pixels, 2)
        if "shift" in pose:
            places = places - pose["shift"][:, None]
        if "angle" in pose:
            cos, sin = pose["angle"].cos()[:, None], pose["angle"].sin()[:, None]
            right, up = places.unbind(-1)
            places = torch.stack([cos * right + sin * up, cos * up - sin * right], -1)
        if "scale" in pose:
            places = places / pose["scale"][:, None, None]
        return self.rest(self.of_place(places) + self.of_code(code)[:, None]).transpose(1, 2).flatten(1)  # channels first
