"""A plane through the latent space, decoded beforehand, for a page on which a pointer walks over it."""

import base64
import io
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.distributions import constraints

from .. import programs
from ..data import DataSet
from ..evaluation.particles import as_data
from ..model.autoencoder import Autoencoder
from ..plots.charts import principal
from .figures import look

_MOST = 41  # codes in a row
_PIXELS = 1300  # of the sprite's side
_DOTS = 1000
_CODES = 5000
_AT_ONCE = 256


def atlas(ae: Autoencoder, data: DataSet) -> dict[str, Any] | None:
    """A grid of decoded codes as one PNG, and the codes of test data, as JSON data; ``None`` where there is no such plane.

    The plane is that of z itself where it has two numbers, otherwise that of the codes' two principal components through
    their mean. There is none for codes that are not real-valued or that need a label to be decoded.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> found = atlas(pa.recipes.autoencoder(digits), digits)
    >>> found["side"], found["tile"], found["names"][0][:12]
    (41, [8, 8], 'component 1,')
    """
    ranges = {"real": (-math.inf, math.inf), "unit_interval": (0.0, 1.0), "positive": (0.0, math.inf)}
    bounds = next((ends for name, ends in ranges.items() if ae.prior.support == getattr(constraints, name)), None)
    if bounds is None or ae.condition is not None:
        return None
    with programs.eval_mode(ae, seed=0):
        codes = ae.centre(as_data(data.test, ae.model, ae.guide)[0][:_CODES]).flatten(1)
        middle, axes, names = _plane(codes)
        dots = (codes - middle) @ axes.T  # (N, 2)
        low, high = torch.quantile(dots, torch.tensor([0.005, 0.995]).to(dots), dim=0)
        low, high = low - 0.1 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3
        shown = look(data)
        tile = [*(shown["image_shape"] or (1, math.prod(data.event_shape)))]  # [channels,] height, width
        side = max(5, min(_MOST, _PIXELS // max(tile[-2:])))
        steps = torch.linspace(0, 1, side).to(dots)[:, None]
        across, down = (low + steps * (high - low)).T
        grid = torch.cartesian_prod(down.flip(0), across).flip(1)  # row by row from the top, (side^2, 2)
        z = (middle + grid @ axes).clamp(*bounds).reshape(-1, *ae.prior.code_shape)
        x = torch.cat([ae.likelihood.picture(ae.decode(part)).flatten(1).cpu() for part in z.split(_AT_ONCE)])
    labels = None if data.test.classes is None else data.test.classes[: len(dots)][:_DOTS].tolist()
    return {
        "png": _png(_sprite(x, side, tile, shown["limits"])),
        "side": side,
        "tile": tile[-2:],
        "low": _rounded(low),
        "high": _rounded(high),
        "names": names,
        "dots": _rounded(dots[:_DOTS]),
        "labels": labels,
        "image": shown["image_shape"] is not None,
    }


def _plane(codes: Tensor) -> tuple[Tensor, Tensor, list[str]]:
    """A point in the plane, two directions ``(2, numbers)`` and their names."""
    numbers = codes.shape[1]
    if numbers <= 2:
        return codes.new_zeros(numbers), torch.eye(2).to(codes)[:, :numbers], ["z1", "z2"]
    middle, directions, shares = principal(codes)
    return middle, directions, [f"component {i + 1}, {share:.0%} of the codes' variance" for i, share in enumerate(shares)]


def _sprite(x: Tensor, side: int, tile: list[int], limits: tuple[float, float]) -> np.ndarray:
    """Decoded x ``(side^2, D)`` as one picture, ``(side h, side w[, channels])`` of bytes."""
    low, high = limits
    *channels, height, width = tile
    channels = channels or [1]
    grey = ((x.double() - low) / max(high - low, 1e-12)).clamp(0, 1).mul(255).round().to(torch.uint8)
    whole = grey.reshape(side, side, *channels, height, width).permute(0, 3, 1, 4, 2).reshape(side * height, side * width, *channels)
    return whole.squeeze(-1).numpy() if channels == [1] else whole.numpy()


def _png(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _rounded(values: Tensor) -> list:
    return np.round(values.double().cpu().numpy(), 4).tolist()
