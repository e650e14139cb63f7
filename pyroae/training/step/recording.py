"""Training steps as CUDA graphs."""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from .graph import Outputs
from .updates import watched

_LOG = logging.getLogger("pyroae")
_KEPT = 8  # recordings
_SETTINGS = 2  # recordings of one kind of call with different settings of the optimizer, before recording is given up


class Recording:
    """One capture of ``step(*args)`` on a device, which computes nothing; ``replay`` runs it on other values of the arguments."""

    def __init__(self, step: Callable[..., Outputs], args: tuple, device: torch.device, pool: Any, stream: Any):
        self.device, self.graph = device, torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            before = torch.cuda.current_stream()
            self.inputs = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
            try:
                with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    outputs = step(*self.inputs)
            except BaseException:
                torch.cuda.set_stream(before)  # a capture that fails leaves its own stream current, and the allocator capturing
                with contextlib.suppress(RuntimeError):
                    self.graph.reset()
                raise
        self.outputs = outputs

    def replay(self, args: tuple) -> Outputs:
        """What a step with these arguments gives, in tensors that the next replay overwrites."""
        with torch.cuda.device(self.device):
            ours, theirs = zip(*[pair for pair in zip(self.inputs, args) if isinstance(pair[0], Tensor)])  # a number is a part of the kind
            torch._foreach_copy_(ours, theirs)
            self.graph.replay()
        return self.outputs


class Recorder:
    """Records functions of a training step on the device, which must have run in the same way before, and replays them from then on.

    Learning rates are tensors on the device in a recording, so schedulers need no new one. A recording knows the optimizer's
    other settings, and the addresses of the parameters and of the optimizer's state; when one of these changes, another is
    made. Recordings share one pool of memory. The optimizer is torch's Adam, AdamW or SGD, with whatever settings: those that
    a recording needs are changed only while a step is recorded.
    """

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer
        self.recordings: dict[tuple, Recording] = {}
        self.able = True
        self.rates: list[tuple[Tensor, float]] = []  # a tensor for each group's learning rate, and the value in it
        self.settings: Counter[tuple] = Counter()  # recordings of each kind of call
        self.pool: tuple[Any, Any] | None = None  # memory, stream
        self.fresh = True  # nothing has run yet with what the optimizer holds now

    def forget(self):
        """Parameters and the optimizer's state were replaced."""
        self.recordings.clear()
        self.settings.clear()
        self.fresh = True

    def ready(self) -> bool:
        """Whether a step can be recorded. A reason why none ever will is logged, once."""
        if self.able and (why := self._refusal()):
            self.give_up(why)
        fresh, self.fresh = self.fresh, False
        return self.able and not fresh

    def give_up(self, why: object):
        """Record nothing any more."""
        self.able = False
        self.recordings.clear()
        _LOG.warning("compile: the step is no CUDA graph and goes on kernel by kernel: %s", why)

    def __call__(self, step: Callable[..., Outputs], kind: tuple, *args) -> Outputs:
        """``step(*args)``, a call of this ``kind``; what is not recorded yet is recorded now. The next call may overwrite the outputs."""
        if not self.able:
            return step(*args)
        groups = self.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        settings = tuple(value for group in groups for name, value in group.items() if name != "lr" and isinstance(value, _PLAIN))
        place = step, kind, tuple(map(Tensor.data_ptr, (*parameters, *self._state())))
        key = place, settings
        if key not in self.recordings:
            self._record(place, settings, args, parameters[0].device)
        if not self.able:
            return step(*args)
        for group, (rate, value) in zip(groups, self.rates):
            if value != group["lr"]:
                rate.fill_(group["lr"])
        self.rates = [(rate, group["lr"]) for group, (rate, _) in zip(groups, self.rates)]
        return self.recordings[key].replay(args)

    def _refusal(self) -> str | None:
        if not isinstance(self.optimizer, Optimizer):
            return "Pyro's optimizers take their step in Python; one of torch's can be recorded"
        if type(self.optimizer) not in _RECORDED:
            return f"expected Adam, AdamW or SGD of torch's, got {type(self.optimizer).__name__}"
        if watched(self.optimizer):
            return "something hooks or wraps the optimizer's step, and would not run"
        if any(isinstance(group["lr"], Tensor) for group in self.optimizer.param_groups):
            return "the learning rate is a tensor; give a number, which may change from step to step"
        return None

    def _state(self) -> list[Tensor]:
        """What the optimizer keeps of the parameters, all of it on their device; numbers of steps may come from a CPU."""
        tensors = []
        for parameter, held in self.optimizer.state.items():
            for name, value in held.items():
                if isinstance(value, Tensor):
                    if value.device != parameter.device:
                        held[name] = value = value.to(parameter.device)
                    tensors.append(value)
        return tensors

    def _record(self, place: tuple, settings: tuple, args: tuple, device: torch.device):
        """Nothing runs while it is recorded."""
        self.settings[place] += 1
        if self.settings[place] > _SETTINGS:
            return self.give_up("the optimizer's settings, apart from the learning rate, change again and again")
        if len(self.recordings) == _KEPT:
            self.recordings.clear()
        if not self.rates:
            self.rates = [(torch.tensor(float(group["lr"]), device=device), group["lr"]) for group in self.optimizer.param_groups]
        try:
            with self._capturable():
                self.recordings[place, settings] = Recording(place[0], args, device, *self._pool(device))
        except Exception as error:  # such as a read of a value, which no recording allows
            self.give_up(error)

    @contextlib.contextmanager
    def _capturable(self) -> Iterator[None]:
        """Learning rates as tensors, and the optimizer as it must be while it is recorded."""
        groups = self.optimizer.param_groups
        settings = _RECORDED[type(self.optimizer)]
        before = [{name: group[name] for name in ("lr", *settings)} for group in groups]
        for group, (rate, _) in zip(groups, self.rates):
            group.update(settings, lr=rate)
        try:
            yield
        finally:
            for group, held in zip(groups, before):
                group.update(held)

    def _pool(self, device: torch.device) -> tuple[Any, Any]:
        """The memory and the stream of all recordings."""
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
        return self.pool


_PLAIN = bool, int, float, tuple
_RECORDED: dict[type, dict[str, Any]] = {  # optimizers, and settings with which they read no number from the device
    Adam: {"capturable": True},
    AdamW: {"capturable": True},
    SGD: {"fused": True, "foreach": False},
}
