"""Arguments of a program as trees: tensors and numbers are leaves, everything else is structure."""

import argparse
import copy
import dataclasses
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .holders import Slots
from .user_code import is_user_class, slots_of

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, type(Ellipsis), np.generic)
NUMBERS = (int, float)
_EXACTLY_PLAIN = frozenset(PLAIN) - {int, float}
_SETTINGS = frozenset({"omegaconf", "ml_collections"})  # packages of objects that hold settings
_CONTAINERS = frozenset((dict, list, tuple))


class Leaves:
    """Leaves and structure of arguments.

    ``structure`` is hashable; calls with equal structures differ only in the contents of ``tensors`` and the values
    of ``numbers``.

    Raises:
        ValueError: an argument that is not a tensor, plain data, or a container of these; names its type.
    """

    __slots__ = ("tensors", "numbers", "objects", "structure")

    def __init__(self, args: tuple, kwargs: dict[str, Any]):
        self.tensors: list[Tensor] = []
        self.numbers: list[int | float] = []
        self.objects: list[Any] = []  # modules and functions
        structure = [self._leaf(value) for value in args]
        if kwargs:
            structure.append(tuple((name, self._leaf(value)) for name, value in kwargs.items()))
        self.structure = tuple(structure)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            for i, tensor in enumerate(self.tensors):
                if tensor is value:
                    return i  # the same tensor again: a graph does not distinguish the two
            self.tensors.append(value)
            return value.shape, value.dtype, value.device, value.requires_grad, layout(value)
        cls = type(value)
        if cls in _EXACTLY_PLAIN:  # the most common types first: this runs at every call
            return cls, value
        if cls in _CONTAINERS:
            return cls, tuple([(name, self._leaf(part)) for name, part in children(value)])
        if cls in NUMBERS or isinstance(value, np.generic):
            self.numbers.append(value)
            return cls
        if isinstance(value, PLAIN):
            return cls, value
        if isinstance(value, nn.Module) or callable(value):
            self.objects.append(value)
            return cls, id(value)
        parts = children(value)
        if parts is None:
            raise ValueError(f"an argument is a {cls.__name__}, which is neither a tensor nor plain data")
        if is_user_class(cls):
            self.objects.append(cls)  # its methods may read more
        return cls, tuple([(name, self._leaf(part)) for name, part in parts])


def layout(tensor: Tensor) -> tuple[int, ...] | None:
    """The strides, ``None`` if contiguous; ``ValueError`` for a sparse tensor."""
    if tensor.layout is not torch.strided:
        raise ValueError(f"an argument is a tensor of the layout {tensor.layout}")
    return None if tensor.is_contiguous() else tensor.stride()


def children(value: Any) -> list[tuple[Any, Any]] | None:
    """Named parts of a container or plain object; ``None`` for other values."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if is_record(value):
        return list(attributes_of(value).items())
    return None


def is_record(value: Any) -> bool:
    """Whether a value is an object with attributes only, such as a namespace, a dataclass or a library's settings."""
    if isinstance(value, type) or not has_attributes(value):
        return False
    is_plain = isinstance(value, (argparse.Namespace, types.SimpleNamespace)) or dataclasses.is_dataclass(value)
    return is_plain or is_user_class(type(value)) or type(value).__module__.partition(".")[0] in _SETTINGS


def has_attributes(value: Any) -> bool:
    """Whether an object can hold attributes, in its ``__dict__`` or in slots; code of the object does not run."""
    return type(value).__dictoffset__ != 0 or bool(slots_of(type(value)))


def attributes_of(value: Any) -> dict[str, Any]:
    """Attributes that an object holds: a new dictionary."""
    slots = {name: held for name in slots_of(type(value)) if (held := Slots(value)[name]) is not Slots}
    return dict_of(value) | slots


def dict_of(value: Any) -> dict[str, Any]:
    """The ``__dict__`` of an object; an empty one if it has none."""
    try:
        return object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}


def map_leaves(value: Any, tensor: Callable[[Tensor], Any], number: Callable[[Any], Any]) -> Any:
    """The tree with its leaves mapped, in the order of ``Leaves`` (repeated tensors again)."""
    if isinstance(value, Tensor):
        return tensor(value)
    if type(value) in NUMBERS or isinstance(value, np.generic):
        return number(value)
    if isinstance(value, PLAIN) or isinstance(value, nn.Module) or callable(value):
        return value
    parts = [(name, map_leaves(part, tensor, number)) for name, part in children(value) or ()]
    if all(new is old for (_, new), (_, old) in zip(parts, children(value) or ())):
        return value
    if isinstance(value, dict):
        result = copy.copy(value)
        result.update(parts)
        return result
    if isinstance(value, tuple):
        items = [part for _, part in parts]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return type(value)(part for _, part in parts)
    result = copy.copy(value)
    for name, part in parts:
        object.__setattr__(result, name, part)  # also where the class is frozen
    return result


def rows_of(args: tuple, kwargs: dict[str, Any]) -> int:
    """The number of examples: of rows of the first tensor that has any; ``ValueError`` if none has."""
    rows = next((len(tensor) for tensor in Leaves(args, kwargs).tensors if tensor.dim() > 0), None)
    if rows is None:
        raise ValueError("expected a tensor with a row for each example among the arguments, for gradient clipping or micro-batches")
    return rows


def micro_batches(args: tuple, kwargs: dict[str, Any], n: int) -> list[tuple[tuple, dict[str, Any]]]:
    """Arguments of at most ``n`` calls, each with a part of the rows of every tensor that has as many as there are examples."""
    if n == 1:
        return [(args, kwargs)]
    rows = rows_of(args, kwargs)
    parts = len(torch.empty(rows).chunk(n))

    def part(i: int) -> tuple[tuple, dict[str, Any]]:
        return map_leaves((args, kwargs), lambda t: t.chunk(n)[i] if t.dim() > 0 and len(t) == rows else t, lambda number: number)

    return list(map(part, range(parts)))
