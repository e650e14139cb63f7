"""How much is computed at once: what fits into a budget of memory, halved after a device runs out of it."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
_BUDGET = 2e9  # bytes for a pass of particles, on a GPU at most a quarter of what is free
_SMALL_BUDGET = 32e6  # for the layers' outputs on a CPU, so that they stay in its caches
_BYTES = 32  # per value of a pass: several layers, and intermediate results of a density
_LOG = logging.getLogger("pyroae")


class MemoryBudget:
    """Runs a function piece by piece.

    Args:
        most: what fits at once.

    >>> list(MemoryBudget(4).pieces(lambda start, stop: (start, stop), 10))
    [(0, 4), (4, 8), (8, 10)]
    """

    def __init__(self, most: int):
        self.most, self.halved = max(1, most), False

    def at_once(self, per: int = 1) -> int:
        """How many items of size ``per`` fit at once, at least 1."""
        return max(1, self.most // per)

    def pieces(self, run: Callable[[int, int], T], size: int, per: int = 1) -> Iterator[T]:
        """``run(start, stop)`` on pieces of ``size`` items; their length is halved for good when a device runs out of memory.

        Raises:
            torch.OutOfMemoryError: a single item does not fit.
        """
        start = 0
        while start < size:
            stop = min(size, start + self.at_once(per))
            try:
                result = run(start, stop)
            except torch.OutOfMemoryError:
                if stop - start == 1:
                    raise
                self.most = (stop - start) * per // 2
            else:
                start = stop
                yield result
                continue
            self._halved()  # outside the handler: the error keeps intermediate results alive

    def _halved(self):
        torch.cuda.empty_cache()
        if not self.halved:
            _LOG.warning("evaluation: the device ran out of memory; going on with half the batch, which is slower")
        self.halved = True


def fitting_rows(widest: int, held: int, device: torch.device) -> int:
    """How many particles, of all examples together, fit into the budget.

    Args:
        widest: values per particle in the widest layer.
        held: the most values per particle among the parameters of a distribution.
    """
    budget = _BUDGET if device.type == "cpu" else min(_BUDGET, torch.cuda.mem_get_info(device)[0] / 4)
    layers = _SMALL_BUDGET if device.type == "cpu" else budget
    return max(1, int(min(layers / max(1, widest), budget / max(1, held)) / _BYTES))


@contextlib.contextmanager
def watching_widths(examples: int) -> Iterator[list[int]]:
    """Within the context, record the number of output values per example of every module, spatial positions included."""
    widths: list[int] = []

    def note(module: nn.Module, inputs: tuple, output: object):
        if isinstance(output, Tensor):
            widths.append(-(-output.numel() // examples))

    hook = nn.modules.module.register_module_forward_hook(note)
    try:
        yield widths
    finally:
        hook.remove()
