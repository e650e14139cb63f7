"""What a callback is called with after an epoch, and how it stops training."""

from typing import Any


class StopTraining(Exception):  # noqa: N818 (a signal, as StopIteration is)
    """Raised by a callback of ``fit``: training ends after this epoch, as if it were the last one, and ``fit`` returns.

    In a distributed job (``pa.distributed``) one process is enough. The weights are those of that epoch, with
    ``patience`` the best so far. A run that is resumed goes on until a callback raises it again.

    >>> import pyroae as pa
    >>> def stop(epoch):
    ...     if epoch["loss"] < 60.0:
    ...         raise pa.StopTraining
    >>> digits = pa.data.load("digits", binarize="threshold")
    >>> len(pa.fit(pa.recipes.vae(digits), digits.train, epochs=50, progress=False, callbacks=[stop]).rows) < 50
    True
    """


class Epoch(dict[str, Any]):
    """The row of an epoch (loss and validation_loss in nats per example, lr, seconds), with what it is about.

    Args:
        row: the columns of the history.
        model, guide: as ``fit`` was given them; the guide of an Autoencoder is ``None``. They are in training mode: evaluate
            with functions such as ``pa.log_likelihood(epoch.model, x, guide=epoch.guide)``, which restore it.
        step: optimizer steps taken so far.

    >>> Epoch({"epoch": 1, "loss": 2.5}, model=None, guide=None, step=12).step
    12
    """

    def __init__(self, row: dict[str, Any], *, model: Any, guide: Any, step: int):
        super().__init__(row)
        self.model, self.guide, self.step = model, guide, step
