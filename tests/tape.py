"""A stand-in for ``torch.cuda.CUDAGraph`` that records operations on a CPU."""

import contextlib
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyroae.training.step import svi
from pyroae.training.step.specialization import Specialization


class Tape(TorchDispatchMode):
    """The operations of one run; ``replay`` repeats them on the same memory, and nothing of the run's Python.

    As on CUDA, a capture computes nothing: what it changed is restored on exit; and reading a value fails.
    """

    made: list["Tape"] = []  # since the test began

    def __init__(self):
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, list]] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.replays = 0

    def __enter__(self):
        self.random = torch.get_rng_state()
        Tape.made.append(self)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        torch.set_rng_state(self.random)
        with torch.no_grad():
            for tensor, value in reversed(self.before):
                tensor.copy_(value)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        if func._schema.is_mutable:
            self.before += [(leaf, leaf.clone()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        results = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, tree_leaves(results)))
        return results

    @torch.no_grad()
    def replay(self):
        """Run the operations again, each result in the place of the first one."""
        self.replays += 1
        for func, args, kwargs, places in self.operations:
            for place, value in zip(places, tree_leaves(func(*args, **kwargs))):
                if isinstance(value, torch.Tensor) and value.data_ptr() != place.data_ptr():
                    place.copy_(value)

    def reset(self):
        """Forget everything."""
        self.operations.clear()


def record_on_cpu(patch) -> list[Tape]:
    """Steps on a CPU are recorded as those on CUDA are; the tapes that are made."""
    patch.setattr(Tape, "made", [])
    patch.setattr(svi, "_on_gpu", lambda args: True)
    patch.setattr(Specialization, "on_device", lambda self, leaves: not self.effects)
    for name, value in {
        "CUDAGraph": Tape,
        "graph": lambda graph, **_: graph,
        "device": lambda _: contextlib.nullcontext(),
        "current_stream": lambda: None,
        "set_stream": lambda _: None,
        "graph_pool_handle": lambda: None,
        "Stream": lambda _: None,
    }.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(sys.modules["torch.optim.adam"], "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
    return Tape.made
