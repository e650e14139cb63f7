"""Axes, figures and colours."""

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import atomic

COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")  # Petroff 2021


class Undrawable(ValueError):
    """A figure that is not defined for this model.

    >>> import pyroae as pa
    >>> issubclass(Undrawable, ValueError)
    True
    """


def axes(ax: Axes | None) -> Axes:
    """The given Axes, or those of a new pyplot figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # not at the top: it selects a backend

    return plt.subplots(layout="constrained")[1]


def figure(draw: Callable, *args, size: tuple[float, float] = (8, 5), **kwargs) -> Figure:
    """A new figure, independent of pyplot, with what a function of ``pa.plots`` draws.

    >>> import torch, pyroae as pa
    >>> figure(pa.plots.images, torch.rand(20, 16), (4, 4)).axes[0].images[0].get_array().shape
    (9, 49)
    """
    new = Figure(figsize=size, layout="constrained")
    draw(*args, ax=new.add_subplot(), **kwargs)
    return new


def save(draw: Callable, path: Any, *args, size: tuple[float, float] = (8, 5), **kwargs):
    """Draw with a function of ``pa.plots`` on a new figure and write it to a PNG file.

    >>> import tempfile, torch, pyroae as pa
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(pa.plots.images, f"{folder}/noise.png", torch.rand(20, 16), (4, 4))
    """
    new = figure(draw, *args, size=size, **kwargs)
    with atomic(path) as temporary:
        new.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
