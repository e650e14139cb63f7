"""Figures of data and models: every function draws on Axes and returns them; none calls ``show``."""

from .charts import aggregate, calibration, latent, training, units, weights
from .drawing import Undrawable, figure, save
from .grid import images
from .models import filters, interpolation, manifold, reconstructions, samples, traversal

__all__ = [
    "Undrawable",
    "aggregate",
    "calibration",
    "figure",
    "filters",
    "images",
    "interpolation",
    "latent",
    "manifold",
    "reconstructions",
    "samples",
    "save",
    "training",
    "traversal",
    "units",
    "weights",
]


def __dir__() -> list[str]:
    return __all__
