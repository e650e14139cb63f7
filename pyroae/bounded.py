"""A limit to the size of models: descriptions of them come from files, and may ask for more than the memory holds."""

import math
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import sizes

T = TypeVar("T")
_NUMBER, _TRAINED = 4, 16  # bytes of a number, and in training: with its gradient and two averages
_EACH = 1000  # numbers that a tensor counts for at least, so that many small ones have a limit too
_REAL = 25_000_000  # numbers that are made while the size of a model is found; what goes beyond is only described
_FACTORIES = "empty zeros ones full rand randn randperm arange linspace eye".split()
_METHODS = "new_empty new_zeros new_ones new_full expand repeat".split()
_MAKERS = dict.fromkeys((*_FACTORIES, *_METHODS), 1) | {"eye": 2}  # what makes a tensor of n numbers, or of n to that power
_TO_HERE = ("cpu", "to", "cuda")
_LIMIT = "which is the limit"
_inside = threading.local()  # whether this thread is inside a Bounded already


class TooManyNumbers(ValueError):
    """A model would hold more numbers than the limit."""


class Bounded(TorchFunctionMode):
    """Inside, ``TooManyNumbers`` before a tensor is made with which all that were made would hold more than so many numbers.

    Args:
        numbers: the limit.
        why: what the limit is, and how the caller raises it, for the message.
    """

    def __init__(self, numbers: float, why: str = _LIMIT):
        super().__init__()
        self.left = self.allowed = numbers
        self.why = why

    def __enter__(self):
        _inside.on = True
        return super().__enter__()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (power := _MAKERS.get(getattr(function, "__name__", ""))) is not None:
            self.left -= max(_EACH, math.prod(_sizes([*args, *kwargs.values()])) ** power)
            if self.left < 0:
                raise self._error()
        return self._call(function, args, kwargs)

    def _call(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        return function(*args, **kwargs)

    def __exit__(self, kind, error, traceback):
        super().__exit__(kind, error, traceback)
        _inside.on = False
        if self.left < 0:
            raise self._error() from error  # a constructor may have turned it into another

    def _error(self) -> ValueError:
        return TooManyNumbers(f"its parts take more than {self.allowed:,.0f} numbers, {self.why}")


class _Described(Bounded):
    """The same, and tensors beyond the first ``_REAL`` numbers are only described: they are on the device ``meta`` and take no memory."""

    beyond = False  # whether there are such tensors

    def _call(self, function, args, kwargs):
        name = getattr(function, "__name__", "")
        if name in _MAKERS and self.allowed - self.left > _REAL:
            self.beyond = True
            if name in ("expand", "repeat"):
                args = (args[0].to("meta"), *args[1:])
            else:
                kwargs = {**kwargs, "device": "meta"}
        elif args and isinstance(args[0], Tensor) and args[0].is_meta:
            if name == "__bool__":
                return True  # checks of values come when they are made
            if name in _TO_HERE:
                return args[0]
        return function(*args, **kwargs)


def build(make: Callable[[], T], numbers: float, why: str = _LIMIT) -> T:
    """``make()``, whose tensors may hold so many numbers in all; of a large one the size is found first, in little memory.

    Inside another ``build`` the limit is that one's.

    Args:
        make: a function without effects but for the random numbers that it draws; it is called again where the result is large.
        numbers: the limit.
        why: what the limit is, and how the caller raises it, for the message.

    Raises:
        TooManyNumbers: there would be more, before memory is taken for them.

    >>> import pyroae as pa
    >>> build(lambda: torch.ones(10**9), 10**8)
    Traceback (most recent call last):
    pyroae.bounded.TooManyNumbers: its parts take more than 100,000,000 numbers, which is the limit
    >>> build(lambda: torch.ones(3), 10**8)
    tensor([1., 1., 1.])
    """
    if getattr(_inside, "on", False):
        return make()
    before, first = torch.get_rng_state(), _Described(numbers, why)
    try:
        with warnings.catch_warnings(), first:
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")
            found = make()
    except TooManyNumbers:
        raise
    except Exception:  # of what is only described, a constructor may ask more than can be said
        if not first.beyond:
            raise
    if not first.beyond:
        return found
    torch.set_rng_state(before)
    with Bounded(numbers, why):
        return make()


def build_for_training(make: Callable[[], T], limit: float) -> T:
    """``build`` for a model that settings describe, which may take so many bytes in training, optimizer and gradients included."""
    return build(make, limit / _TRAINED, f"{_LIMIT}; raise it by --limit, in bytes: {_TRAINED} for each number in training")


def build_here(make: Callable[[], T]) -> T:
    """``build`` with the memory of this machine as the limit."""
    return build(make, machine_numbers(), "all that the memory of this machine holds")


def in_memory(limit: float) -> float:
    """How many numbers take so many bytes."""
    return limit / _NUMBER


def machine_numbers() -> float:
    """How many numbers the memory of this machine holds; infinite where the system does not say."""
    try:
        return in_memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # such as on Windows
        return math.inf


def file_numbers(weights: Iterable[Tensor]) -> float:
    """How many numbers a model file may make that has these weights: far more than one that ``save`` wrote needs."""
    return sizes.MODEL_TIMES * (sizes.MODEL_SPARE + sum(weight.numel() + _EACH for weight in weights))


def _sizes(values: Iterable) -> Iterator[int]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _sizes(value)
        elif isinstance(value, int):
            yield max(1, value)
