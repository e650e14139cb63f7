"""A plane through the latent space, decoded on a grid, for the interactive part of a report."""

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
from ..data import DataSet, Schema
from ..evaluation.particles import as_data
from ..model.autoencoder import Autoencoder
from ..plots.charts import principal
from .figures import image_options

_MAX_SIDE = 41  # grid points per side
_PIXELS = 1300  # of the sprite's side
_DOTS = 1000  # test examples drawn as dots
_CODES = 5000  # test examples that determine the plane
_BATCH = 256
_COLUMNS = 40  # of x that is no image whose values are shown


def atlas(ae: Autoencoder, data: DataSet) -> dict[str, Any] | None:
    """A grid of decoded z as one PNG and the codes of test data, as JSON data; ``None`` if the model has no such plane.

    The plane is the latent space itself if that has two dimensions, otherwise the one through the mean of the codes along
    their first two principal components. Discrete latent spaces and conditional models have none.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> result = atlas(pa.recipes.autoencoder(digits), digits)
    >>> result["side"], result["tile"], result["names"][0][:12]
    (41, [8, 8], 'component 1,')
    """
    ranges = {"real": (-math.inf, math.inf), "unit_interval": (0.0, 1.0), "positive": (0.0, math.inf)}
    bounds = next((ends for name, ends in ranges.items() if ae.prior.support == getattr(constraints, name)), None)
    if bounds is None or ae.condition is not None:
        return None
    with programs.eval_mode(ae, seed=0):
        codes = ae.latent_mean(as_data(data.test, ae.model, ae.guide)[0][:_CODES]).flatten(1)
        mean, axes, names = _plane(codes)
        dots = (codes - mean) @ axes.T  # (N, 2)
        low, high = torch.quantile(dots, torch.tensor([0.005, 0.995]).to(dots), dim=0)
        low, high = low - 0.1 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3
        options = image_options(data)
        tile = [*(options["image_shape"] or (1, math.prod(data.event_shape)))]  # [channels,] height, width
        side = max(5, min(_MAX_SIDE, _PIXELS // max(tile[-2:])))
        steps = torch.linspace(0, 1, side).to(dots)[:, None]
        across, down = (low + steps * (high - low)).T
        grid = torch.cartesian_prod(down.flip(0), across).flip(1)  # row by row from the top, (side^2, 2)
        z = (mean + grid @ axes).clamp(*bounds).reshape(-1, *ae.prior.code_shape)
        x = torch.cat([ae.likelihood.mean_or_mode(ae.decode(part)).flatten(1).cpu() for part in z.split(_BATCH)])
    labels = None if data.test.classes is None else data.test.classes[: len(dots)][:_DOTS].tolist()
    return {
        "png": _png(_sprite(x, side, tile, options["limits"])),
        "side": side,
        "tile": tile[-2:],
        "low": _rounded(low),
        "high": _rounded(high),
        "names": names,
        "dots": _rounded(dots[:_DOTS]),
        "labels": labels,
        "image": options["image_shape"] is not None,
        "numbers": None if options["image_shape"] is not None else _numbers(ae, x),
    }


def _numbers(ae: Autoencoder, x: Tensor) -> dict[str, list]:
    """Decoded x that is no image, as text by column: names, and a row per point of the grid; of the first columns."""
    columns = ae.schema.columns if ae.schema is not None else None
    frame = Schema(None if columns is None else columns[:_COLUMNS]).frame(x[:, :_COLUMNS])
    rows = [
        [f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value) for value in row]
        for row in frame.itertuples(index=False)
    ]
    return {"names": [str(name) for name in frame.columns], "rows": rows}


def _plane(codes: Tensor) -> tuple[Tensor, Tensor, list[str]]:
    """A point in the plane, two directions ``(2, D)`` and their names."""
    size = codes.shape[1]
    if size <= 2:
        return codes.new_zeros(size), torch.eye(2).to(codes)[:, :size], ["z1", "z2"]
    mean, directions, shares = principal(codes)
    return mean, directions, [f"component {i + 1}, {share:.0%} of the codes' variance" for i, share in enumerate(shares)]


def _sprite(x: Tensor, side: int, tile: list[int], limits: tuple[float, float]) -> np.ndarray:
    """Decoded x ``(side^2, D)`` as one image, ``(side h, side w[, channels])`` of bytes."""
    low, high = limits
    *channels, height, width = tile
    channels = channels or [1]
    grey = ((x.double() - low) / max(high - low, 1e-12)).clamp(0, 1).mul(255).round().to(torch.uint8)
    sprite = grey.reshape(side, side, *channels, height, width).permute(0, 3, 1, 4, 2).reshape(side * height, side * width, *channels)
    return sprite.squeeze(-1).numpy() if channels == [1] else sprite.numpy()


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _rounded(values: Tensor) -> list:
    return np.round(values.double().cpu().numpy(), 4).tolist()
