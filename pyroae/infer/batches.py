"""Mini-batches on the device, from a tensor, a split of a data set, a Dataset or a DataLoader."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from . import programs

_BLOCK = 64  # batches gathered and drawn at once, so that a batch is a contiguous slice


Args = tuple[Tensor, ...]  # what a program is called with: x, or x and y


class Batches:
    """One epoch of batches each time it is iterated; ``len`` is their number. A batch is what the programs are called with.

    Tensors live on the device where they fit into a quarter of its free memory. A split of ``pa.data.load`` has its
    method ``draw`` applied to x in every epoch, on the device.

    ``state_dict`` says where the epoch under way is; another ``Batches`` of the same data that loads it, under the random
    state of that moment, goes on with the same batches. (A DataLoader is read again up to there.)

    Args:
        data: as ``as_tensors`` takes them, or a Dataset or a DataLoader.
        batch_size: rows in a batch.
        device: where the batches go.
        shuffle: whether each epoch has an order of its own.
        model: its ``takes_labels`` says whether labels go with x, its ``check_data`` looks at the data first.

    Raises:
        ValueError: data of another type, or none at all.
    """

    def __init__(self, data: Any, batch_size: int, device: torch.device, shuffle: bool, model: Any = None):
        self.device, self.batch_size, self.shuffle, self.model = device, batch_size, shuffle, model
        self.draw = getattr(data, "draw", None) or (lambda x: x)
        if isinstance(data, Dataset):
            data = DataLoader(data, batch_size, shuffle=shuffle)
        if not isinstance(data, DataLoader):
            data = as_tensors(data, model)
            check_data(model, (self.draw(data[0]), *data[1:]))
            data = tuple(column.to(device) for column in data) if _fits(data, device) else data
        self.data = data
        sources = [getattr(data, "generator", None), getattr(getattr(data, "sampler", None), "generator", None)]
        self.generators = [source for source in sources if isinstance(source, torch.Generator)]
        self.under_way: dict[str, Any] | None = None  # where the epoch is, its random states included
        self.loaded = False

    def __len__(self) -> int:
        return -(-len(self.data[0]) // self.batch_size) if isinstance(self.data, tuple) else len(self.data)

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch is, and the loader's own random numbers."""
        return {"generators": [source.get_state() for source in self.generators], "epoch": self.under_way and dict(self.under_way)}

    def load_state_dict(self, state: dict[str, Any]):
        """The next iteration goes on from there."""
        self.under_way, self.loaded = state["epoch"], state["epoch"] is not None
        self._set_generators(state["generators"])

    def __iter__(self) -> Iterator[Args]:
        now = programs.random_state(self.device)
        if self.loaded:
            programs.set_random_state(self.under_way["order"], self.device)
            self._set_generators(self.under_way["generators"])
        else:
            self.under_way = {"given": 0, "order": now, "block": now, "generators": self.state_dict()["generators"]}
        self.loaded = False
        for batch in self._of_tensors(now) if isinstance(self.data, tuple) else self._of_loader(now):
            self.under_way["given"] += 1
            yield batch
        self.under_way = None

    def first(self) -> Args:
        """A batch to look at; no epoch is under way by it."""
        batch = next(iter(self))
        self.under_way = None
        return batch

    def _set_generators(self, states: list[Tensor]):
        for source, state in zip(self.generators, states):
            source.set_state(state)

    def _of_tensors(self, now: dict) -> Iterator[Args]:
        n, device, given = len(self.data[0]), self.data[0].device, self.under_way["given"]
        order = torch.randperm(n, device=device) if self.shuffle else None
        first = max(0, given - 1) // _BLOCK
        for block in range(first, -(-len(self) // _BLOCK)):
            again = given and block == first
            if again:
                programs.set_random_state(self.under_way["block"], self.device)
            else:
                self.under_way["block"] = programs.random_state(self.device)
            rows = slice(block * self.batch_size * _BLOCK, (block + 1) * self.batch_size * _BLOCK)
            x, *rest = (column[rows if order is None else order[rows]].to(self.device, non_blocking=True) for column in self.data)
            batches = list(zip(*(column.split(self.batch_size) for column in (self.draw(x), *rest))))
            if again:
                programs.set_random_state(now, self.device)
                del batches[: given - first * _BLOCK]
            yield from batches

    def _of_loader(self, now: dict) -> Iterator[Args]:
        given = self.under_way["given"]
        for number, batch in enumerate(self.data, 1):
            if number == given:
                programs.set_random_state(now, self.device)
            if number <= given:
                continue
            batch = tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
            batch = batch[: 2 if takes_labels(self.model) else 1]
            check_data(self.model, batch)  # still on the host, so looking at it waits for no device
            yield tuple(column.to(self.device, non_blocking=True) for column in batch)


def takes_labels(model: Any) -> bool:
    """Whether a model is called with labels beside x: what it says itself, otherwise whether it asks for a second argument."""
    if hasattr(model, "takes_labels") or not callable(model):
        return getattr(model, "takes_labels", False)
    asked = inspect.signature(getattr(model, "forward", model)).parameters.values()
    return sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in asked) > 1


def check_data(model: Any, args: Args):
    """Let the model look at data, where it knows how."""
    if hasattr(model, "check_data"):
        model.check_data(*args)


def as_tensors(data: Any, model: Any = None) -> Args:
    """What a program is called with: ``(x,)`` for a tensor, a tuple ``(x, y)`` as it is; a split's x, with labels if the model takes them.

    Raises:
        ValueError: another type, no rows, tensors of different lengths, or a split without the labels that the model takes.
    """
    if hasattr(data, "labels") and takes_labels(model):
        if data.labels is None:
            raise ValueError("this model takes labels, but the data have none; give data as a tuple (x, y), or data with labels")
        data = (data.x, data.labels)
    data = getattr(data, "x", data)
    data = data if isinstance(data, tuple) else (data,)
    if not all(isinstance(column, Tensor) for column in data):
        raise ValueError(
            "expected data as a tensor (N, *event), a tuple (x, y) of tensors, a split such as pa.data.load(...).train, or, to train on, "
            f"a Dataset or a DataLoader, got {' and '.join(type(column).__name__ for column in data)}"
        )
    if data[0].dim() == 0 or len(data[0]) == 0:
        raise ValueError(f"expected at least one datum, got a tensor of shape {tuple(data[0].shape)}")
    if any(column.shape[:1] != data[0].shape[:1] for column in data):
        raise ValueError(f"expected x and y with as many rows, got the shapes {' and '.join(str(tuple(c.shape)) for c in data)}")
    return data


def _fits(data: Args, device: torch.device) -> bool:
    return device.type != "cuda" or sum(column.nbytes for column in data) < torch.cuda.mem_get_info(device)[0] / 4


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is CUDA where there is one; ``ValueError`` for CUDA that is absent or a name that is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda', got {device!r}") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: CUDA was asked for, but this machine has none that torch can use; use device='auto' or 'cpu'")
    return found
