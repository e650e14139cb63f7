"""Ctrl-C and SIGTERM in training: the current step is finished first."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_DEFAULT_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}  # only these are replaced


@contextlib.contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM sets the event, the second raises ``KeyboardInterrupt``.

    Slurm, Kubernetes and torchrun send SIGTERM some seconds before they kill a process. Custom handlers are kept.
    """
    event = threading.Event()

    def handle(*_):
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    is_main = threading.current_thread() is threading.main_thread()
    replaced = [number for number, default in _DEFAULT_HANDLERS.items() if is_main and signal.getsignal(number) == default]
    for number in replaced:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number in replaced:
            signal.signal(number, _DEFAULT_HANDLERS[number])
