"""A lock for code that uses process-wide state: Pyro's handlers and parameter store, and torch's random numbers."""

import logging
import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

_PATIENCE = 10.0  # seconds of waiting before a message is logged
_LOG = logging.getLogger("pyroae")
_lock = threading.RLock()
F = TypeVar("F", bound=Callable)


def _new_lock():
    """A new lock for a forked process, in which the thread that held the old one does not exist."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


class one_at_a_time:
    """A reentrant lock: while it is held, other threads wait before they train, evaluate or build a model."""

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
    """Decorator that runs a function inside ``one_at_a_time``, such as one that initialises a model."""

    @wraps(function)
    def waiting(*args: Any, **kwargs: Any) -> Any:
        with one_at_a_time():
            return function(*args, **kwargs)

    return waiting  # ty: ignore[invalid-explicit-return]
