"""A limit to what is made: descriptions of models come from files, and may ask for more than the memory holds."""

import math
from collections.abc import Iterable, Iterator

from torch.overrides import TorchFunctionMode

NUMBERS = 2**31  # of a model that settings describe: 8 GiB in float32
_EACH = 1000  # numbers that a tensor counts for at least, so that many small ones have a limit too
_MAKERS = dict.fromkeys("empty zeros ones full rand randn randperm arange linspace expand repeat".split(), 1)
_MAKERS |= {f"new_{name}": 1 for name in ("empty", "zeros", "ones", "full")} | {"eye": 2}  # what makes a tensor of n, or n to that power


class Bounded(TorchFunctionMode):
    """Inside, ``ValueError`` before a tensor is made with which all that were made would hold more than so many numbers.

    Args:
        numbers: the limit.
        remedy: how the caller raises it, for the message.
    """

    def __init__(self, numbers: float = NUMBERS, remedy: str = ""):
        super().__init__()
        self.left = self.allowed = numbers
        self.remedy = remedy

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (power := _MAKERS.get(getattr(function, "__name__", ""))) is not None:
            self.left -= max(_EACH, math.prod(_sizes([*args, *kwargs.values()])) ** power)
            if self.left < 0:
                raise self._error()
        return function(*args, **kwargs)

    def __exit__(self, kind, error, traceback):
        super().__exit__(kind, error, traceback)
        if self.left < 0:
            raise self._error() from error  # a constructor may have turned it into another

    def _error(self) -> ValueError:
        return ValueError(f"its parts take more than {self.allowed:,.0f} numbers, which is the limit{self.remedy}")


def bound(limit: float) -> Bounded:
    """The limit to a model that settings describe: 8 GiB of float32, or more where ``limit``, in bytes, is."""
    return Bounded(max(NUMBERS, limit / 4), "; raise it by --limit, in bytes")


def _sizes(values: Iterable) -> Iterator[int]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _sizes(value)
        elif isinstance(value, int):
            yield max(1, value)
