"""Which pictures a model gets, and writing them: of held-out data, at the end and while it trains."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from .. import plots, programs
from ..data import DataSet
from ..evaluation.checking import predictive_check, sbc
from ..evaluation.decomposition import active_units
from ..evaluation.particles import as_data
from ..files import atomic
from ..model.autoencoder import Autoencoder

_CODES = 5000  # data whose codes are drawn
_LOOK = 100_000  # data that tell the range of x
_FEW = 500  # data for which x is drawn again and again


def draw(ae: Autoencoder, data: DataSet, folder: Path) -> list[str]:
    """Write every picture that exists for this model into a folder; returns their names. The model stays as it was.

    Reconstructions; samples, under a proper prior; of images, filters, where the encoder starts with a linear layer, and
    walks between two data in the code, where that is real; of a z of two numbers the manifold, in equal steps and in equal
    shares of the prior; the codes by label.
    """
    written = []
    for name, figure in figures(ae, data):
        with atomic(folder / f"{name}.png") as path:
            figure.savefig(path, dpi=150, format="png", bbox_inches="tight")
        written.append(f"{name}.png")
    return written


def figures(ae: Autoencoder, data: DataSet) -> Iterator[tuple[str, Figure]]:
    """Every picture that exists for this model, by name; it stays as it was."""
    yield from _drawn(ae, _pictures(ae, data))


def as_it_trains(ae: Autoencoder, data: DataSet, folder: Path, every: int) -> Callable[[dict], None]:
    """A callback for ``fit``: after every so many epochs the pictures, in a folder of their own such as ``epoch-0010``."""

    def callback(row: dict):
        if row["epoch"] % every == 0:
            below = folder / f"epoch-{row['epoch']:04d}"
            below.mkdir(exist_ok=True)  # an epoch that is repeated after a stop draws again
            draw(ae, data, below)

    return callback


def look(data: DataSet) -> dict[str, Any]:
    """How this data set's x is drawn: ``image_shape`` and ``limits``."""
    binary = data.domain in ("binary", "unit")
    return {"image_shape": data.image_shape, "limits": (0.0, 1.0) if binary else (_finite(data).min().item(), _finite(data).max().item())}


def diagnostics(ae: Autoencoder, data: DataSet) -> Iterator[tuple[str, Figure]]:
    """More pictures of this model, which take longer: what the code does, and whether model and guide expect what they should."""
    args = as_data(data.test, ae.model, ae.guide, stream=True)
    some = tuple(each[:_CODES] for each in args)
    few = tuple(each[:_FEW] for each in args)
    made: dict[str, Callable] = {
        "traversal": lambda **to: plots.traversal(ae, some[0], y=some[1] if len(some) > 1 else None, **look(data), **to),
        "units": lambda **to: plots.units(active_units(ae, some), **to),
        "aggregate": lambda **to: plots.aggregate(ae, *some, **to),
        "calibration": lambda **to: plots.calibration(predictive_check(ae, few), **to),
        "ranks": lambda **to: plots.calibration(sbc(ae, few), **to),
    }
    yield from _drawn(ae, made)


def _drawn(ae: Autoencoder, pictures: dict[str, Callable]) -> Iterator[tuple[str, Figure]]:
    for name, picture in pictures.items():
        try:
            with programs.eval_mode(ae, seed=0):
                figure = plots.figure(picture)
        except (ValueError, NotImplementedError):  # this model has no such picture
            continue
        yield name, figure


def _finite(data: DataSet) -> Tensor:
    x = data.train.x[:_LOOK]
    return x[x.isfinite()]


def _pictures(ae: Autoencoder, data: DataSet) -> dict[str, Callable]:
    shown = look(data)
    first = tuple(each[:_CODES] for each in as_data(data.test, ae.model, ae.guide, stream=True))
    pictures = {"reconstructions": partial(plots.reconstructions, ae, *(each[:12] for each in first), **shown)}
    if ae.prior.proper:
        pictures["samples"] = partial(plots.samples, ae, 60, **shown)
    if data.image_shape is not None:
        pictures["filters"] = partial(plots.filters, ae, data.image_shape)
        if ae.condition is None and len(ae.prior.sites) == 1 and not ae.prior.support.is_discrete:
            pictures["walk"] = partial(plots.walk, ae, first[0][:10], **shown)
    if tuple(ae.prior.code_shape) == (2,) and ae.condition is None:
        pictures["manifold"] = partial(plots.manifold, ae, span=2.0, **shown)
        pictures["manifold-by-prior"] = partial(plots.manifold, ae, **shown)
    labels = None if data.test.classes is None else data.test.classes[:_CODES]
    pictures["codes"] = lambda **to: plots.latent(ae, first[0], labels, *first[1:], **to)
    return pictures
