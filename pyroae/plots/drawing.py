"""Where pictures are drawn, and in which colours."""

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import atomic

COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")  # Petroff 2021


class Undrawable(ValueError):
    """A picture that this model does not have.

    >>> import pyroae as pa
    >>> issubclass(Undrawable, ValueError)
    True
    """


def axes(ax: Axes | None) -> Axes:
    """The Axes given, or those of a new figure of pyplot's."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # only here: it chooses a backend

    return plt.subplots()[1]


def figure(draw: Callable, *args, size: tuple[float, float] = (8, 5), **kwargs) -> Figure:
    """A figure of its own, without pyplot, on which a function of ``pa.plots`` has drawn.

    >>> import torch, pyroae as pa
    >>> figure(pa.plots.images, torch.rand(20, 16), (4, 4)).axes[0].images[0].get_array().shape
    (9, 49)
    """
    made = Figure(figsize=size)
    draw(*args, ax=made.add_subplot(), **kwargs)
    return made


def save(draw: Callable, path: Any, *args, size: tuple[float, float] = (8, 5), **kwargs):
    """Call a function of ``pa.plots`` on a figure of its own and write it to a PNG file, whole or not at all.

    >>> import tempfile, torch, pyroae as pa
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(pa.plots.images, f"{folder}/noise.png", torch.rand(20, 16), (4, 4))
    """
    made = figure(draw, *args, size=size, **kwargs)
    with atomic(path) as temporary:
        made.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
