"""Snapshots of the state that a run of a program can change, so that a step can be run twice."""

import copy
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from .reach import Reach


def python_random() -> tuple:
    """States of Python's and NumPy's random number generators."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, keys.tobytes(), *rest)


class Snapshot:
    """Random states, tensors, gradients, the parameter store and attributes of user objects.

    Args:
        reach: what the program can read.
        more: further tensors that may change, such as arguments and the optimizer's state.
    """

    def __init__(self, reach: Reach, more: Iterable[Tensor] = ()):
        self.reach, self.tensors = reach, reach.tensors()
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self.random, self.numpy = random.getstate(), np.random.get_state()
        self.gradients = [(tensor, tensor.grad) for tensor in self.tensors if tensor.is_leaf]
        writable = [tensor for tensor in (*self.tensors, *more) if not (_expanded(tensor) or tensor.is_inference())]
        self.copies = [(tensor, tensor.detach().clone()) for tensor in {id(tensor): tensor for tensor in writable}.values()]
        store = pyro.get_param_store()
        self.store = [(entries, dict(entries)) for entries in (store._params, store._param_to_name, store._constraints)]
        self.containers = [(container, copy.copy(container)) for container in reach.containers()]

    @torch.no_grad()
    def restore(self):
        """Restore the state."""
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
        random.setstate(self.random)
        np.random.set_state(self.numpy)
        for container, before in self.containers:
            if len(container) != len(before):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(before)
        self.reach.restore()
        for holder, key, tensor in zip(*self.reach.tensor_slots, self.tensors):
            if holder[key] is not tensor:
                holder[key] = tensor
        for entries, before in self.store:
            if not _identical(entries, before):
                entries.clear()
                entries.update(before)
        for tensor, before in self.copies:
            if not torch.equal(tensor, before):  # writing would invalidate a graph with the tensor as a constant
                tensor.copy_(before)
        for tensor, gradient in self.gradients:
            tensor.grad = gradient


def _expanded(tensor: Tensor) -> bool:
    """Whether entries share memory, so that the tensor cannot be written."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape))


def _identical(a: dict, b: dict) -> bool:
    return len(a) == len(b) and all(a.get(key, _MISSING) is value for key, value in b.items())


_MISSING: Any = object()
