"""The argument of a callback, and the exception by which it stops training."""

import math
from typing import Any

from .. import sizes
from ..checks import short


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

    def plain(self) -> dict[str, Any]:
        """The columns as numbers and text, as a checkpoint keeps them; ``ValueError`` for other values."""
        row = {name: value.item() if getattr(value, "ndim", None) == 0 else value for name, value in self.items()}
        for name, value in row.items():
            if not isinstance(name, str) or not is_plain(value):
                raise ValueError(f"fit: expected a callback to add numbers or short text by name, got {name!r}: {short(value)}")
        return row


def is_plain(value: Any) -> bool:
    """Whether a value can be in the history: a number, possibly NaN, or text."""
    is_number = value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < sizes.LARGEST)
    return is_number or (isinstance(value, str) and len(value) <= sizes.TEXT)


def complete(rows: list[dict[str, Any]]):
    """Give every row every column: NaN where a callback added none.

    >>> rows = [{"epoch": 1}, {"epoch": 2, "extra": 0.5}]
    >>> complete(rows)
    >>> rows[0]
    {'epoch': 1, 'extra': nan}
    """
    columns = dict.fromkeys(name for row in rows for name in row)
    for row in rows:
        row |= {name: math.nan for name in columns if name not in row}
