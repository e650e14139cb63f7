"""CUDA graphs of training steps."""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from .graph import Outputs
from .updates import has_custom_step

_LOG = logging.getLogger("pyroae")
_MAX_RECORDINGS = 8
_MAX_SETTINGS = 2  # recordings of the same call with different settings of the optimizer, before recording is given up


class Recording:
    """A capture of ``step(*args)`` on a device, which computes nothing; ``replay`` runs it with other values of the arguments."""

    def __init__(self, step: Callable[..., Outputs], args: tuple, device: torch.device, pool: Any, stream: Any):
        self.device, self.graph = device, torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            before = torch.cuda.current_stream()
            self.inputs = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
            try:
                with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    outputs = step(*self.inputs)
            except BaseException:
                torch.cuda.set_stream(before)  # a failed capture leaves its stream current, and the allocator capturing
                with contextlib.suppress(RuntimeError):
                    self.graph.reset()
                raise
        self.outputs = outputs
        self.places = [i for i, value in enumerate(self.inputs) if isinstance(value, Tensor)]
        self.tensors = [self.inputs[i] for i in self.places]

    def replay(self, args: tuple) -> Outputs:
        """Outputs of a step with these arguments, in tensors that the next replay overwrites."""
        with torch.cuda.device(self.device):
            torch._foreach_copy_(self.tensors, [args[i] for i in self.places])  # numbers are equal
            self.graph.replay()
        return self.outputs


class Recorder:
    """Records functions of a training step that have run before in the same way, and replays them.

    Learning rates are tensors on the device in a recording, so schedulers need no new one. A recording fixes the optimizer's
    other settings, and the addresses of parameters and of the optimizer's state; if one of these changes, another is
    made. Recordings share a memory pool. Supported are torch's Adam, AdamW and SGD with any settings; settings required for
    capture are changed only during the recording.
    """

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer
        self.recordings: dict[tuple, Recording] = {}
        self.enabled = True
        self.rates: list[tuple[Tensor, float]] = []  # learning rate of each group as a tensor, and its value
        self.settings: Counter[tuple] = Counter()  # number of recordings of each call
        self.pool: tuple[Any, Any] | None = None  # memory, stream
        self.is_new = True  # whether no step was taken since the optimizer's state was replaced
        self.last: Recording | None = None  # that replayed the last call

    def forget(self):
        """Discard recordings after parameters or the optimizer's state were replaced."""
        self.recordings.clear()
        self.settings.clear()
        self.is_new, self.last = True, None

    def ready(self) -> bool:
        """Whether a step can be recorded. If it never can, the reason is logged once."""
        if self.enabled and (reason := self._unsupported()):
            self.disable(reason)
        is_new, self.is_new = self.is_new, False
        return self.enabled and not is_new

    def disable(self, reason: object):
        """Stop recording, and log the reason."""
        self.enabled = False
        self.recordings.clear()
        _LOG.warning("compile: the step is no CUDA graph and runs kernel by kernel: %s", reason)

    def __call__(self, step: Callable[..., Outputs], call_key: tuple, *args) -> Outputs:
        """Replay ``step(*args)``, after recording it if necessary; ``call_key`` identifies equivalent calls.

        The next call may overwrite the outputs.
        """
        self.last = None
        if not self.enabled:
            return step(*args)
        groups = self.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        settings = tuple(value for group in groups for name, value in group.items() if name != "lr" and isinstance(value, _PLAIN))
        call = step, call_key, tuple(map(Tensor.data_ptr, (*parameters, *self._state())))
        key = call, settings
        if key not in self.recordings:
            self._record(call, settings, args, parameters[0].device)
        if not self.enabled:
            return step(*args)
        for group, (rate, value) in zip(groups, self.rates):
            if value != group["lr"]:
                rate.fill_(group["lr"])
        self.rates = [(rate, group["lr"]) for group, (rate, _) in zip(groups, self.rates)]
        self.last = self.recordings[key]
        return self.last.replay(args)

    def _unsupported(self) -> str | None:
        if not isinstance(self.optimizer, Optimizer):
            return "Pyro's optimizers take their step in Python; one of torch's can be recorded"
        if type(self.optimizer) not in _RECORDED:
            return f"expected Adam, AdamW or SGD of torch's, got {type(self.optimizer).__name__}"
        if has_custom_step(self.optimizer):
            return "something hooks or wraps the optimizer's step, and would not run"
        if any(isinstance(group["lr"], Tensor) for group in self.optimizer.param_groups):
            return "the learning rate is a tensor; give a number, which may change from step to step"
        return None

    def _state(self) -> list[Tensor]:
        """Tensors of the optimizer's state, moved to the parameters' device; step counts may be on the CPU."""
        tensors = []
        for parameter, entries in self.optimizer.state.items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    if value.device != parameter.device:
                        entries[name] = value = value.to(parameter.device)
                    tensors.append(value)
        return tensors

    def _record(self, call: tuple, settings: tuple, args: tuple, device: torch.device):
        """Record a call, which does not run it."""
        self.settings[call] += 1
        if self.settings[call] > _MAX_SETTINGS:
            return self.disable("the optimizer's settings, apart from the learning rate, change again and again")
        if len(self.recordings) == _MAX_RECORDINGS:
            self.recordings.clear()
        if not self.rates:
            self.rates = [(torch.tensor(float(group["lr"]), device=device), group["lr"]) for group in self.optimizer.param_groups]
        try:
            with self._capturable():
                self.recordings[call, settings] = Recording(call[0], args, device, *self._pool(device))
        except Exception as error:  # for example reading a value, which a recording does not permit
            self.disable(error)

    @contextlib.contextmanager
    def _capturable(self) -> Iterator[None]:
        """Learning rates as tensors, and settings of the optimizer that capture requires."""
        groups = self.optimizer.param_groups
        settings = _RECORDED[type(self.optimizer)]
        before = [{name: group[name] for name in ("lr", *settings)} for group in groups]
        for group, (rate, _) in zip(groups, self.rates):
            group.update(settings, lr=rate)
        try:
            yield
        finally:
            for group, values in zip(groups, before):
                group.update(values)

    def _pool(self, device: torch.device) -> tuple[Any, Any]:
        """Memory pool and stream of all recordings."""
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
        return self.pool


_PLAIN = bool, int, float, tuple
_RECORDED: dict[type, dict[str, Any]] = {  # supported optimizers, and settings in which they read no value from the device
    Adam: {"capturable": True},
    AdamW: {"capturable": True},
    SGD: {"fused": True, "foreach": False},
}
