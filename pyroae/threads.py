"""One thread at a time: Pyro's handlers, its parameter store and torch's random numbers belong to the whole process."""

import logging
import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

_PATIENCE = 10.0  # seconds of waiting without a word
_LOG = logging.getLogger("pyroae")
_lock = threading.RLock()
F = TypeVar("F", bound=Callable)


def _new_lock():
    """For a forked process, in which the thread that held the lock does not exist."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


class one_at_a_time:
    """Inside, no other thread trains, evaluates or makes a model: it waits, and so computes what it would alone. A thread may nest."""

    __slots__ = ("lock",)

    def __enter__(self):
        self.lock = _lock
        if not self.lock.acquire(timeout=_PATIENCE):
            _LOG.warning(
                "pyroae: another thread trains, evaluates or makes a model; this one waits, since Pyro's state belongs to the whole process"
            )
            self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()


def alone(function: F) -> F:
    """The function inside ``one_at_a_time``, such as one that draws the first weights of a model."""

    @wraps(function)
    def waiting(*args: Any, **kwargs: Any) -> Any:
        with one_at_a_time():
            return function(*args, **kwargs)

    return waiting  # ty: ignore[invalid-explicit-return]
