"""One thread at a time: Pyro's handlers, its parameter store and torch's random numbers belong to the whole process."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

_PATIENCE = 10.0  # seconds of waiting without a word
_LOG = logging.getLogger("pyroae")
_lock = threading.RLock()


def _new_lock():
    """For a forked process, in which the thread that held the lock does not exist."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Inside, no other thread trains or evaluates: it waits, and so computes what it would compute alone. The same thread may nest."""
    lock = _lock
    if not lock.acquire(timeout=_PATIENCE):
        _LOG.warning("pyroae: another thread trains or evaluates; this one waits, since Pyro's state belongs to the whole process")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
