"""Ctrl-C and SIGTERM in a training run: the step under way is finished first."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}  # the handlers that may be replaced


@contextlib.contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Inside, the first SIGINT or SIGTERM sets the event, and the second raises ``KeyboardInterrupt`` at once.

    SIGTERM is what Slurm, Kubernetes and torchrun send some seconds before they kill a process. Handlers of the caller's own stay.
    """
    event = threading.Event()

    def note(*_):
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    main = threading.current_thread() is threading.main_thread()
    replaced = [number for number, usual in _USUAL.items() if main and signal.getsignal(number) == usual]
    for number in replaced:
        signal.signal(number, note)
    try:
        yield event
    finally:
        for number in replaced:
            signal.signal(number, _USUAL[number])
