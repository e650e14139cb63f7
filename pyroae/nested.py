"""What distributions, constraints and parts hold, however deep: tensors and modules; copies of it."""

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributions import Transform
from torch.distributions.constraints import Constraint


def _held(value) -> dict:
    """What a distribution, transform or constraint holds, one level down; not a transform's inverse, which holds it in turn."""
    holds = isinstance(value, (torch.distributions.Distribution, Transform, Constraint)) and not isinstance(value, nn.Module)
    return {name: item for name, item in vars(value).items() if name != "_inv"} if holds else {}


def modules(value: Any) -> list[nn.Module]:
    """The modules that a distribution holds, such as a flow's transforms."""
    if isinstance(value, nn.Module):
        return [value]
    items = value if isinstance(value, (list, tuple)) else _held(value).values()
    return [module for item in items for module in modules(item)]


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors that a distribution holds, those of modules left out."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value if isinstance(value, (list, tuple)) else _held(value).values()
    return [tensor for item in items for tensor in tensors(item)]


def holds_closure(value: Any) -> bool:
    """Whether a distribution holds a function that holds tensors in turn, as Pyro's conditional transforms do."""
    if isinstance(value, nn.Module):
        return any(_is_closure(item) for module in value.modules() for item in vars(module).values())
    items = value if isinstance(value, (list, tuple)) else _held(value).values()
    return _is_closure(value) or any(map(holds_closure, items))


def _is_closure(value: Any) -> bool:
    is_bound = isinstance(value, (functools.partial, types.MethodType))
    return is_bound or (isinstance(value, types.FunctionType) and value.__closure__ is not None)


def mapped(value: Any, fn: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy with ``fn`` applied to every tensor in it that no module owns; what has none is returned as it is."""
    if isinstance(value, torch.Tensor):
        return fn(value)
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(item, fn) for item in value)
    held = _held(value)
    if not tensors(value):
        return value
    copied = copy.copy(value)
    copied.__dict__.update({name: mapped(item, fn) for name, item in held.items()})
    if isinstance(value, Transform):
        copied._inv = None  # that of the original, which holds the original's tensors
    return copied


def copied(part: Any) -> Any:
    """A deep copy, without the graphs behind tensors that transforms remember of their last call."""
    return copy.deepcopy(part, without_graphs(part))


def without_graphs(part: Any) -> dict[int, Any]:
    """For ``copy.deepcopy``: what is not copied, by ``id``: tensors that are results of a graph, as tensors without it; constraints.

    Constraints such as ``constraints.real`` are told apart by identity.
    """
    left, visited, memo = [part], set(), {}
    while left:
        value = left.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, torch.Tensor):
            memo |= {id(value): value.detach()} if value.grad_fn is not None else {}
        elif isinstance(value, Constraint) and not tensors(value):
            memo[id(value)] = value
        elif isinstance(value, (list, tuple)):
            left += value
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, (nn.Module, torch.distributions.Distribution, Transform)):
            left += vars(value).values()
    return memo
