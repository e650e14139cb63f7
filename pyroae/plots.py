"""Pictures of data and models; every function returns the Axes and shows nothing."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from .autoencoder import Autoencoder

Limits = tuple[float, float]


def images(
    x: Tensor, image_shape: tuple[int, ...] | None = None, limits: Limits = (0.0, 1.0), *, columns: int = 10, ax: Axes | None = None
) -> Axes:
    """A grid of images, row by row; data that are no images are drawn as strips, one below another.

    Args:
        x: ``(N, *event)``.
        image_shape: height, width and, for colour, 3; ``None`` for data that are no images.
        limits: the values drawn black and white.
        columns: images in a row.
        ax: where to draw.
    """
    ax = ax or plt.subplots()[1]
    x = x.detach().cpu().flatten(1)
    if image_shape is None:
        ax.imshow(x.numpy(), aspect="auto", interpolation="nearest", cmap="viridis")
        ax.set(xlabel="entry of x", ylabel="datum")
        return ax
    height, width, *colour = image_shape
    rows = -(-len(x) // columns)
    pad = max(1, height // 8)
    canvas = np.ones((rows * (height + pad) - pad, columns * (width + pad) - pad, *colour))
    low, high = limits
    for i, image in enumerate(((x - low) / (high - low)).clamp(0, 1).reshape(-1, *image_shape).numpy()):
        top, left = i // columns * (height + pad), i % columns * (width + pad)
        canvas[top : top + height, left : left + width] = image
    ax.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def reconstructions(
    ae: Autoencoder,
    x: Tensor,
    y: Tensor | None = None,
    image_shape: tuple[int, ...] | None = None,
    limits: Limits = (0.0, 1.0),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Held-out data above what the model makes of them; with a corruption, the corrupted data and theirs too.

    Args:
        ae: the model.
        x: data that were not trained on, ``(N, *event)``; a dozen or so.
        y: their labels or covariates, for a model with a condition.
        image_shape, limits: as in ``images``.
        ax: where to draw.
    """
    rows = {"x": x, "mean of p(x|z)": ae.reconstruct(x, y)}
    if ae.corruption is not None:
        noisy = ae.corruption(x.to(ae.device))
        rows = {"x": x, "corrupted x": noisy, "mean of p(x|z)": ae.reconstruct(noisy, y)}
    ax = images(torch.cat([row.cpu() for row in rows.values()]), image_shape, limits, columns=len(x), ax=ax)
    if image_shape is not None:
        _name_rows(ax, list(rows), image_shape[0])
    else:
        ax.set_ylabel(" / ".join(f"{len(x)} of {name}" for name in rows))
    ax.set_title("Reconstruction of held-out data")
    return ax


def samples(
    ae: Autoencoder,
    n: int = 60,
    image_shape: tuple[int, ...] | None = None,
    limits: Limits = (0.0, 1.0),
    *,
    y: Tensor | None = None,
    columns: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Means of p(x|z) for ``n`` codes drawn from the prior, or one for each row of ``y``.

    Under the condition Labels there is a column for each class.

    Raises:
        ValueError: the prior is improper.
    """
    title = "Samples: mean of p(x|z), z from the prior"
    if y is None and ae.condition is not None and not ae.condition.optional:
        y, columns = ae.condition.spread(n), ae.condition.size
        title = f"Samples: mean of p(x|z,y), z from the prior, y = 0 to {columns - 1} from left to right"
    with torch.no_grad():
        ax = images(ae.likelihood.picture(ae.decode(ae.sample_prior(n, y), y)), image_shape, limits, columns=columns, ax=ax)
    ax.set_title(title)
    return ax


def save(draw: Any, path: Any, *args, size: tuple[float, float] = (8, 5), **kwargs):
    """Call a function of this module on a figure of its own and write it to a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    draw(*args, ax=figure.add_subplot(), **kwargs)
    figure.savefig(path, dpi=150, format="png", bbox_inches="tight")


def _name_rows(ax: Axes, names: list[str], height: int):
    pad = max(1, height // 8)
    ax.set_yticks([i * (height + pad) + height / 2 for i in range(len(names))], names)
    ax.tick_params(length=0)
