"""Schedules: functions of the number of training steps, ``step -> value``."""

from collections.abc import Callable

import torch

from ..checks import whole_number
from ..registry import Part, register, register_base

__all__ = ["Cyclical", "Linear", "Schedule"]


def __dir__() -> list[str]:
    return __all__


@register_base("schedules")
class Schedule(Part):
    """``schedule(step)``: the value after ``step`` training steps.

    >>> import pyroae as pa
    >>> isinstance(pa.schedules.Linear(10), Schedule)
    True
    """

    def __call__(self, step: int) -> float:
        """The value as a Python number."""
        raise NotImplementedError


@register("schedules")
class Linear(Schedule):
    """Linear from ``start`` to ``end`` in ``steps`` training steps, then constant: a warm-up (Bowman et al. 2016).

    >>> [Linear(4)(step) for step in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0):
        whole_number("Linear", steps=steps)
        self.steps, self.start, self.end = steps, start, end

    def __call__(self, step):
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)


@register("schedules")
class Cyclical(Schedule):
    """``Linear`` over the first ``rise`` of each ``period`` of training steps, then constant (Fu et al. 2019, eq. 6).

    >>> [Cyclical(8)(step) for step in (0, 2, 4, 7, 8, 10)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]
    """

    def __init__(self, period: int, rise: float = 0.5, start: float = 0.0, end: float = 1.0):
        whole_number("Cyclical", period=period)
        if not 0.0 < rise <= 1.0:
            raise ValueError(f"Cyclical: expected rise as a fraction of the period, above 0 and at most 1, got {rise!r}")
        self.period, self.rise, self.start, self.end = period, rise, start, end

    def __call__(self, step):
        return self.start + (self.end - self.start) * min(1.0, step % self.period / (self.rise * self.period))


class Scheduled:
    """A value with a schedule, stored in a tensor that is updated in place, so that a traced graph reads the current value.

    Args:
        owner: beginning of error messages, such as ``"Tempered: expected beta"``.
        value: a number of at least 0, or a schedule of such numbers.
    """

    read_by_programs = ("tensor",)  # the only attribute that a graph watches

    def __init__(self, owner: str, value: float | Callable[[int], float]):
        self.owner, self.step = owner, 0
        self.tensor = torch.zeros((), dtype=torch.float64)
        self.set(value)

    def set(self, value: float | Callable[[int], float] | torch.Tensor):
        """Set a number or schedule."""
        self.schedule = value if callable(value) else None
        self._fill(value(self.step) if callable(value) else value)

    def advance(self, steps: int = 1):
        """Advance by a number of training steps. The value is computed on the host, without synchronization."""
        self.step += steps
        if self.schedule is not None:
            self._fill(self.schedule(self.step))

    def to(self, device: torch.device):
        """Move the tensor to a device."""
        self.tensor = self.tensor.to(device)

    def schedules(self) -> list[Callable[[int], float]]:
        """The schedule, if there is one."""
        return [] if self.schedule is None else [self.schedule]

    def values(self) -> list[float]:
        """The current value; synchronizes with the device."""
        return [self.tensor.item()]

    def state_dict(self) -> dict:
        """The step and the value."""
        return {"step": self.step, "value": self.tensor}

    def load_state_dict(self, state: dict):
        """Restore ``state_dict``."""
        self.step = state["step"]
        self.tensor.copy_(state["value"])

    def _fill(self, value):
        if not value >= 0.0:
            raise ValueError(f"{self.owner} of at least 0, or a function of the training steps so far that gives one, got {value!r}")
        self.tensor.fill_(value)
