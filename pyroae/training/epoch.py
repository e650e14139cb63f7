"""The argument of a callback, and the exception by which it stops training."""

from typing import Any


class StopTraining(Exception):  # noqa: N818 (a signal, as StopIteration is)
    """Raised by a callback of ``fit``: training stops after this epoch, and ``fit`` returns.

    In a distributed job (``pa.distributed``) one process is enough. The weights are those of that epoch, with
    ``patience`` the best so far. A resumed run trains until a callback raises it again.

    >>> import pyroae as pa
    >>> def stop(epoch):
    ...     if epoch["loss"] < 60.0:
    ...         raise pa.StopTraining
    >>> digits = pa.data.load("digits", binarize="threshold")
    >>> len(pa.fit(pa.recipes.vae(digits), digits.train, epochs=50, progress=False, callbacks=[stop]).rows) < 50
    True
    """


class Epoch(dict[str, Any]):
    """A row of the history (loss and validation_loss in nats per example, lr, seconds), with model, guide and step.

    Args:
        row: the columns of the history.
        model, guide: the arguments of ``fit``; the guide is ``None`` for an Autoencoder. They are in training mode: evaluate
            with functions such as ``pa.log_likelihood(epoch.model, x, guide=epoch.guide)``, which restore it.
        step: number of optimizer steps so far.

    >>> Epoch({"epoch": 1, "loss": 2.5}, model=None, guide=None, step=12).step
    12
    """

    def __init__(self, row: dict[str, Any], *, model: Any, guide: Any, step: int):
        super().__init__(row)
        self.model, self.guide, self.step = model, guide, step
