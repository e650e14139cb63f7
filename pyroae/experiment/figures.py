"""The figures of a run: which ones a model has, and writing them, at the end of training or during it."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from torch import Tensor

from .. import plots, programs
from ..data import DataSet
from ..evaluation.checking import predictive_check, sbc
from ..evaluation.decomposition import active_units
from ..evaluation.particles import as_data
from ..files import atomic
from ..model.autoencoder import Autoencoder

Projection = Literal["pca", "tsne", "umap"]
_CODES = 5000  # examples whose codes are drawn
_RANGE = 100_000  # examples that determine the range of x
_FEW = 500  # examples for figures that draw x many times


def draw(ae: Autoencoder, data: DataSet, folder: Path) -> list[str]:
    """Write every figure that is defined for this model into a folder; returns the file names. The model is not changed.

    Reconstructions; samples, under a proper prior; for images, the filters of a first linear layer and interpolations between
    codes; for a two-dimensional z, the decoded latent space on a regular grid and at quantiles of the prior; codes by label.
    """
    written = []
    for name, figure in figures(ae, data):
        with atomic(folder / f"{name}.png") as path:
            figure.savefig(path, dpi=150, format="png", bbox_inches="tight")
        written.append(f"{name}.png")
    return written


def figures(ae: Autoencoder, data: DataSet, projection: Projection = "pca") -> Iterator[tuple[str, Figure]]:
    """Every figure that is defined for this model, by name. The model is not changed.

    Args:
        ae: the model.
        data: its data.
        projection: of codes with more than two dimensions.
    """
    yield from _drawn(ae, _functions(ae, data, projection))


def during_training(ae: Autoencoder, data: DataSet, folder: Path, every: int) -> Callable[[dict], None]:
    """A callback for ``fit`` that writes the figures every ``every`` epochs, to a folder such as ``epoch-0010``."""

    def callback(row: dict):
        if row["epoch"] % every == 0:
            subfolder = folder / f"epoch-{row['epoch']:04d}"
            subfolder.mkdir(exist_ok=True)  # a resumed run may repeat an epoch
            draw(ae, data, subfolder)

    return callback


def image_options(data: DataSet) -> dict[str, Any]:
    """How x of this data set is drawn: ``image_shape`` and ``limits``."""
    binary = data.domain in ("binary", "unit")
    return {"image_shape": data.image_shape, "limits": (0.0, 1.0) if binary else (_finite(data).min().item(), _finite(data).max().item())}


def diagnostics(ae: Autoencoder, data: DataSet) -> Iterator[tuple[str, Figure]]:
    """Further figures, which take longer: what each latent dimension does, and the calibration of model and guide."""
    args = as_data(data.test, ae.model, ae.guide, stream=True)
    subset = tuple(column[:_CODES] for column in args)
    few = tuple(column[:_FEW] for column in args)
    functions: dict[str, Callable] = {
        "traversal": lambda **options: plots.traversal(ae, subset, **image_options(data), **options),
        "units": lambda **options: plots.units(active_units(ae, subset), **options),
        "aggregate": lambda **options: plots.aggregate(ae, subset, **options),
        "calibration": lambda **options: plots.calibration(predictive_check(ae, few), **options),
        "ranks": lambda **options: plots.calibration(sbc(ae, few), **options),
    }
    yield from _drawn(ae, functions)


def _drawn(ae: Autoencoder, functions: dict[str, Callable]) -> Iterator[tuple[str, Figure]]:
    for name, function in functions.items():
        try:
            with programs.eval_mode(ae, seed=0):
                figure = plots.figure(function)
        except (ValueError, NotImplementedError):  # not defined for this model
            continue
        yield name, figure


def _finite(data: DataSet) -> Tensor:
    x = data.train.x[:_RANGE]
    return x[x.isfinite()]


def _functions(ae: Autoencoder, data: DataSet, projection: Projection) -> dict[str, Callable]:
    """The functions that draw a figure, by its name."""
    options = image_options(data)
    args = tuple(column[:_CODES] for column in as_data(data.test, ae.model, ae.guide, stream=True))
    functions = {"reconstructions": partial(plots.reconstructions, ae, tuple(column[:12] for column in args), **options)}
    if ae.prior.proper:
        functions["samples"] = partial(plots.samples, ae, 60, **options)
    if data.image_shape is not None:
        functions["filters"] = partial(plots.filters, ae, data.image_shape)
        if ae.condition is None and len(ae.prior.sites) == 1 and not ae.prior.support.is_discrete:
            functions["interpolation"] = partial(plots.interpolation, ae, args[0][:10], **options)
    if tuple(ae.prior.code_shape) == (2,) and ae.condition is None:
        functions["manifold"] = partial(plots.manifold, ae, span=2.0, **options)
        functions["manifold-by-prior"] = partial(plots.manifold, ae, **options)
    labels = None if data.test.classes is None else data.test.classes[:_CODES]
    functions["codes"] = lambda **options: plots.latent(ae, args, labels, method=projection, **options)
    return functions
