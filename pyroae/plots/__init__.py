"""Pictures of data and models: every function draws on Axes, returns them, and shows nothing."""

from .charts import aggregate, calibration, latent, training, units, weights
from .drawing import Undrawable, figure, save
from .grid import images
from .models import filters, manifold, reconstructions, samples, traversal, walk

__all__ = [
    "Undrawable",
    "aggregate",
    "calibration",
    "figure",
    "filters",
    "images",
    "latent",
    "manifold",
    "reconstructions",
    "samples",
    "save",
    "training",
    "traversal",
    "units",
    "walk",
    "weights",
]


def __dir__() -> list[str]:
    return __all__
