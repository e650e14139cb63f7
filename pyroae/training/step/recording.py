"""A whole training step as one CUDA graph."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from .graph import Outputs

_LOG = logging.getLogger("pyroae")
_KEPT = 8  # recordings


class Recorder:
    """Records ``step`` on the device, which must have run in the same way before, and replays it from then on.

    A recording knows the settings of the optimizer's groups (a learning rate is a number in it) and the addresses of the
    parameters; when either changes, another is made. The optimizer must be ``capturable``.
    """

    def __init__(self, step: Callable[..., Outputs], optimizer: Optimizer):
        self.step, self.optimizer = step, optimizer
        self.recordings: dict[tuple, tuple[torch.cuda.CUDAGraph, tuple, Outputs]] = {}
        self.able = all(group.get("capturable") for group in getattr(optimizer, "param_groups", [{}]))

    def __call__(self, kind: tuple, *args) -> Outputs:
        """A step of this ``kind``; what is not recorded yet is run as it is."""
        groups = self.optimizer.param_groups
        settings = tuple(value for group in groups for value in group.values() if isinstance(value, (bool, int, float, tuple)))
        key = (kind, settings, tuple(p.data_ptr() for group in groups for p in group["params"]))
        if key not in self.recordings:
            self._record(key, args)
        if not self.able:
            return self.step(*args)
        graph, inputs, outputs = self.recordings[key]
        for ours, theirs in zip(inputs, args):
            if isinstance(ours, Tensor):  # a number is a part of the kind
                ours.copy_(theirs)
        graph.replay()
        return Outputs([loss.clone() for loss in outputs], outputs.info)

    def _record(self, key: tuple, args: tuple):
        """Nothing runs while it is recorded."""
        if len(self.recordings) == _KEPT:
            self.recordings.clear()
        inputs, graph = tuple(a.clone() if isinstance(a, Tensor) else a for a in args), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                outputs = self.step(*inputs)
        except Exception as error:  # such as a read of a value, which no recording allows
            self.able = False
            _LOG.warning("compile: the step is no CUDA graph and goes on kernel by kernel (%s)", error)
            return
        self.recordings[key] = graph, inputs, Outputs(outputs[: outputs.info.losses], outputs.info)
