"""Grids of images, and strips for examples that are not images."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .drawing import axes

Limits = tuple[float, float]
_LENGTH = 20  # characters of a column's name
_NAMED = 40  # at most so many columns are labelled
_GAP = "#c9d6e4"  # colour between images: not grey, so that white images have a visible edge


def images(
    x: Tensor,
    image_shape: tuple[int, ...] | None = None,
    limits: Limits = (0.0, 1.0),
    *,
    columns: int = 10,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A grid of images, row by row; examples that are not images are drawn as strips, one below the other.

    Args:
        x: ``(N, *event)``; NaN pixels have the colour of the gaps.
        image_shape: ``(H, W)`` or ``(C, H, W)``; by default that of x ``(N, C, H, W)``, otherwise x is not drawn as images.
        limits: the values drawn black and white.
        columns: images per row.
        names: of the entries of x, for a table; each column is then scaled to its own range.
        ax: the Axes to draw on; by default new ones.

    >>> images(torch.rand(20, 16), (4, 4)).images[0].get_array().shape
    (9, 49)
    """
    ax = axes(ax)
    image_shape = shape_of(x, image_shape)
    x = x.detach().cpu().flatten(1)
    if image_shape is None:
        return _strips(x, names, ax)
    *channels, height, width = image_shape
    colour = channels if channels != [1] else []
    rows = -(-len(x) // columns)
    pad = max(1, height // 8)
    canvas = np.full(
        (rows * (height + pad) - pad, columns * (width + pad) - pad, *colour), to_rgba(_GAP)[: colour[0]] if colour else np.nan
    )
    low, high = limits
    for i, image in enumerate(((x - low) / (high - low)).clamp(0, 1).reshape(-1, *image_shape).numpy()):
        top, left = i // columns * (height + pad), i % columns * (width + pad)
        canvas[top : top + height, left : left + width] = np.moveaxis(image, 0, -1) if colour else image.reshape(height, width)
    ax.imshow(canvas, cmap=matplotlib.colormaps["gray"].with_extremes(bad=_GAP), vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def _strips(x: Tensor, names: Sequence[str] | None, ax: Axes) -> Axes:
    """Examples as strips, one below the other."""
    label = "value"
    if names is not None:
        low, high = _ranges(x)
        x, label = (x - low) / (high - low).clamp(min=1e-12), "column's minimum = 0, maximum = 1"
    image = ax.imshow(x.numpy(), aspect="auto", interpolation="nearest", cmap="viridis")
    ax.figure.colorbar(image, ax=ax, label=label)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="entry of x" if names is None else "", ylabel="example")
    if names is not None:
        name_columns(ax, names)
    return ax


def name_columns(ax: Axes, names: Sequence[str]):
    """Label the columns of strips, unless they are too many."""
    if len(names) <= _NAMED:
        texts = [name if len(name) <= _LENGTH else f"{name[: _LENGTH - 3]}..." for name in names]
        ax.set_xticks(range(len(names)), texts, rotation=60, ha="right", rotation_mode="anchor")


def _ranges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of every column, without missing values."""
    return x.nan_to_num(torch.inf).amin(0), x.nan_to_num(-torch.inf).amax(0)


def shape_of(x: Tensor, image_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The given image shape, or that of x ``(N, C, H, W)`` with 1, 3 or 4 channels; ``None`` if x is not images."""
    if image_shape is not None:
        return tuple(image_shape)
    return tuple(x.shape[1:]) if x.dim() == 4 and x.shape[1] in (1, 3, 4) else None


def name_rows(ax: Axes, names: list[str], image_shape: tuple[int, ...] | None, strips: int):
    """Label the rows of images, or groups of ``strips`` strips with a line between them."""
    height = strips if image_shape is None else image_shape[-2]
    pad = 0 if image_shape is None else max(1, height // 8)
    ax.set_yticks([i * (height + pad) + height / 2 - 0.5 for i in range(len(names))], names)
    ax.tick_params(axis="y", length=0)
    if image_shape is None:
        ax.set_ylabel("")
        for i in range(1, len(names)):
            ax.axhline(i * height - 0.5, color="white", linewidth=2)
