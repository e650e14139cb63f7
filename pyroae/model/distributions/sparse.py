"""A point with few non-zero entries, and what penalties need to know of it."""

from pyro import distributions as dist
from torch import Tensor


class SparsePoint(dist.Delta):
    """A ``Delta`` at a sparse code, with the numbers before its activation.

    Args:
        v: the code, ``(..., *event)``.
        units: the numbers from which it was computed, before the activation, ``(..., *event)``.
        active: 1 where a unit is active and 0 elsewhere, with a surrogate gradient where the posterior learns its thresholds.
        idle: ``(*event)``, the number of training examples since each unit was active.
    """

    def __init__(self, v: Tensor, units: Tensor, active: Tensor, idle: Tensor, validate_args: bool | None = None):
        super().__init__(v, validate_args=validate_args)
        self.units, self.active, self.idle = units, active, idle

    def expand(self, batch_shape, _instance=None):
        """The same point for a larger batch."""
        return SparsePoint(*(value.expand(batch_shape) for value in (self.v, self.units, self.active)), self.idle)
