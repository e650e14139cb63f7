"""Which pictures a model gets, and writing them: of held-out data, at the end and while it trains."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import plots, storage
from .autoencoder import Autoencoder
from .data import DataSet
from .evaluation.particles import as_data
from .infer import programs

_CODES = 5000  # data whose codes are drawn


def draw(ae: Autoencoder, data: DataSet, folder: Path) -> list[str]:
    """Write every picture that exists for this model into a folder; returns their names. The model stays as it was.

    Reconstructions; samples, under a proper prior; filters, where the encoder starts with a linear layer; of a z of two
    numbers the manifold, in equal steps and in equal shares of the prior, and the codes by label.
    """
    pictures = _pictures(ae, data)
    written = []
    with programs.looking(ae, seed=0):
        for name, picture in pictures.items():
            try:
                with storage.atomic(folder / f"{name}.png") as path:
                    plots.save(picture, path)
            except plots.Undrawable:
                continue
            written.append(f"{name}.png")
    return written


def as_it_trains(ae: Autoencoder, data: DataSet, folder: Path, every: int) -> Callable[[dict], None]:
    """A callback for ``fit``: after every so many epochs the pictures, in a folder of their own such as ``epoch-0010``."""

    def callback(row: dict):
        if row["epoch"] % every == 0:
            below = folder / f"epoch-{row['epoch']:04d}"
            below.mkdir()
            draw(ae, data, below)

    return callback


def _pictures(ae: Autoencoder, data: DataSet) -> dict[str, Callable]:
    limits = (0.0, 1.0) if data.domain in ("binary", "unit") else (data.train.x.min().item(), data.train.x.max().item())
    look = {"image_shape": data.image_shape, "limits": limits}
    first = as_data(data.test, ae.model, ae.guide)
    pictures = {"reconstructions": partial(plots.reconstructions, ae, *(each[:12] for each in first), **look)}
    if ae.prior.proper:
        pictures["samples"] = partial(plots.samples, ae, 60, **look)
    if data.image_shape is not None:
        pictures["filters"] = partial(plots.filters, ae, data.image_shape)
    if tuple(ae.prior.code_shape) == (2,) and ae.condition is None:
        pictures["manifold"] = partial(plots.manifold, ae, span=2.0, **look)
        pictures["manifold-by-prior"] = partial(plots.manifold, ae, **look)
        pictures["codes"] = partial(
            plots.latent, ae, data.test.x[:_CODES], data.test.labels[:_CODES] if data.test.labels is not None else None
        )
    return pictures
