"""Callbacks of ``fit``: each is called after every epoch, sees its row, the model and the step, and may stop training."""

import math
from pathlib import Path
from typing import Any, Protocol

from .. import programs
from ..data import DataSet
from ..evaluation.particles import as_data
from ..evaluation.representation import codes
from ..evaluation.terms import elbo_terms
from ..model.autoencoder import Autoencoder
from ..programs import Program
from ..training.epoch import Epoch
from . import figures

__all__ = ["Callback", "ELBOTerms", "Epoch", "TensorBoard"]


def __dir__() -> list[str]:
    return __all__


_UNITS = 32  # latent dimensions with a histogram
_ROWS = 500  # examples for the terms of the ELBO


class Callback(Protocol):
    """Any function of an ``Epoch``. What it adds to the epoch is kept in the history; raising ``pa.StopTraining`` ends training.

    >>> import pyroae as pa
    >>> halve = lambda row: row.update(half=row["loss"] / 2)
    >>> digits = pa.data.load("digits")
    >>> pa.fit(pa.recipes.autoencoder(digits), digits.train, epochs=1, progress=False, callbacks=[halve]).rows[0].keys()
    dict_keys(['epoch', 'loss', 'lr', 'seconds', 'half'])
    """

    def __call__(self, epoch: Epoch, /) -> None:
        """Read, or add to, an epoch's row: epoch, loss and validation_loss in nats per example, lr, seconds since the start."""


class ELBOTerms:
    """Adds the two terms of the ELBO to every epoch: ``reconstruction`` E log p(x|z) and ``kl``, nats per example, over the first 500.

    Args:
        model: an Autoencoder, or any Pyro model of a batch.
        data: a tensor ``(N, *event)``, a tuple ``(x, y)`` or a split of ``pa.data.load(...)``.
        guide: the model's guide, unless ``model`` is an Autoencoder.
        every: epochs between evaluations; NaN in the other epochs but the first.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits", binarize="threshold")
    >>> vae = pa.recipes.vae(digits)
    >>> history = pa.fit(vae, digits.train, epochs=2, progress=False, callbacks=[ELBOTerms(vae, digits.test)])
    >>> len(history["kl"])
    2
    """

    def __init__(self, model: Any, data: Any, guide: Program | None = None, every: int = 1):
        self.model, self.guide = programs.pair(model, guide)
        self.every = every
        with programs.eval_mode(self.model, self.guide, seed=0):
            self.data = tuple(column[:_ROWS] for column in as_data(data, self.model, self.guide, stream=True))

    def __call__(self, row: Epoch) -> None:
        row["reconstruction"] = row["kl"] = math.nan
        if row["epoch"] == 1 or row["epoch"] % self.every == 0:
            terms = elbo_terms(self.model, self.data, self.guide, particles=1)
            row["reconstruction"], row["kl"] = terms.reconstruction.mean().item(), terms.kl.mean().item()


class TensorBoard:
    """Logs to TensorBoard: all numbers of every epoch; every ``every`` epochs the figures and a histogram of each latent dimension.

    Args:
        folder: for the event files; ``tensorboard --logdir`` reads it.
        ae: the model.
        data: its test split is drawn and encoded.
        every: epochs between figures.

    Raises:
        ValueError: TensorBoard is not installed.

    >>> import glob, tempfile, pyroae as pa
    >>> digits = pa.data.load("digits", binarize="threshold")
    >>> vae = pa.recipes.vae(digits)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     history = pa.fit(vae, digits.train, epochs=2, progress=False, callbacks=[TensorBoard(folder, vae, digits, every=9)])
    ...     len(glob.glob(f"{folder}/events*"))
    1
    """

    def __init__(self, folder: str | Path, ae: Autoencoder, data: DataSet, every: int = 10):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("TensorBoard: it is not installed; pip install 'pyroae[tensorboard]'") from error
        self.writer, self.ae, self.data, self.every = SummaryWriter(str(folder)), ae, data, every

    def __call__(self, row: Epoch) -> None:
        step = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch" and math.isfinite(value):
                self.writer.add_scalar(name, value, step)
        if step % self.every == 0:
            self._draw(step)
        self.writer.flush()

    def _draw(self, step: int):
        for name, figure in figures.figures(self.ae, self.data):
            self.writer.add_figure(name, figure, step, close=False)
        z = codes(self.ae, self.data.test)
        for unit in range(min(_UNITS, z.shape[1])):
            self.writer.add_histogram(f"code/z{unit + 1}", z[:, unit].numpy(), step)
