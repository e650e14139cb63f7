"""Copies of a run's state in memory, and its checkpoints."""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from . import distributed
from .checkpoints import Checkpoints, copy_tensors
from .divergence import Diverged

_COPY_INTERVAL = 5.0  # seconds between copies in memory, which are restored when a run diverges or another process dies
_MAX_SHARE = 0.05  # of the time, for checkpoints at the ends of epochs
_LOG = logging.getLogger("pyroae")


class Saver:
    """Copies a run's state, and writes checkpoints if there is a folder.

    Args:
        state: returns the state, tensors by reference.
        is_finite: whether all weights and losses are finite.
        checkpoints: ``None`` to keep copies in memory only.
    """

    def __init__(self, state: Callable[[], dict[str, Any]], is_finite: Callable[[], bool], checkpoints: Checkpoints | None):
        self.state, self.is_finite, self.checkpoints = state, is_finite, checkpoints
        self.last: dict[str, Any] = {}  # the newest copy
        self.copied_at = self.saved_at = time.perf_counter()
        self.write_seconds = 0.0

    def start(self):
        """Copy the initial state, and write it in a new run."""
        self.copy()
        if self.checkpoints and not self.checkpoints.paths():
            self.checkpoints.write(self.last)

    def copy(self):
        """Copy the state, which must be finite, to the CPU's memory; synchronizes with the device."""
        if not self.is_finite():
            raise Diverged("a weight is not finite")
        self.last, self.copied_at = copy_tensors(self.state(), torch.device("cpu")), time.perf_counter()

    def save(self):
        """Copy the state and write a checkpoint."""
        self.copy()
        self.write()

    def write(self):
        """Write the newest copy; a full or missing disk does not stop training."""
        if self.checkpoints is None:
            return
        start = time.perf_counter()
        try:
            self.checkpoints.write(self.last)
        except OSError as error:
            _LOG.warning("fit: no checkpoint could be written (%s); training continues, and the previous checkpoint remains", error)
        self.saved_at = time.perf_counter()
        self.write_seconds = self.saved_at - start

    def update(self, interval: float | None = None):
        """Write a checkpoint if the last one is older than ``interval`` seconds, otherwise copy the state at intervals.

        By default the interval limits the share of the time that is spent on writing. The main process decides, so that all
        processes copy the state after the same step.
        """
        now, interval = time.perf_counter(), self.write_seconds / _MAX_SHARE if interval is None else interval
        is_due = self.checkpoints is not None and now - self.saved_at > interval
        if distributed.main_decides(is_due or now - self.copied_at > _COPY_INTERVAL):
            self.save() if is_due else self.copy()
