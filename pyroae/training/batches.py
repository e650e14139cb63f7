"""Mini-batches on the device, from a tensor, a split of a data set, a Dataset or a DataLoader."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .. import programs
from ..data.rows import Rows
from . import distributed

_BLOCK = 64  # batches gathered and drawn at once, so that a batch is a contiguous slice; of large ones fewer
_BLOCK_BYTES = 2**27
_LOOK = 1000  # rows on disk that are looked at before training


Args = tuple[Tensor | Rows, ...]  # what a program is called with: x, or x and y


class Batches:
    """One epoch of batches each time it is iterated; ``len`` is their number. A batch is what the programs are called with.

    Tensors live on the device where they fit into a quarter of its free memory. Rows on disk are read some batches at a
    time, in any order, and checked as they come. A split of ``pa.data.load`` has its method ``draw`` applied to x in every
    epoch, on the device.

    ``state_dict`` says where the epoch under way is; another ``Batches`` of the same data that loads it, under the random
    state of that moment, goes on with the same batches. (A DataLoader is read again up to there.)

    Args:
        data: as ``as_tensors`` takes them, or a Dataset or a DataLoader.
        batch_size: rows in a batch.
        device: where the batches go.
        shuffle: whether each epoch has an order of its own.
        model: its ``takes_labels`` says whether labels go with x, its ``check_data`` looks at the data first.
        shared: whether processes that work together (``distributed.together``) each take their share of every batch.

    Raises:
        ValueError: data of another type, or none at all.
    """

    def __init__(self, data: Any, batch_size: int, device: torch.device, shuffle: bool, model: Any = None, shared: bool = False):
        self.device, self.batch_size, self.shuffle, self.model = device, batch_size, shuffle, model
        self.draw = getattr(data, "draw", None) or (lambda x: x)
        self.rank, self.processes = (distributed.rank(), distributed.processes()) if shared else (0, 1)
        self.share = len(range(self.rank, batch_size, self.processes))  # of a batch, for this process
        if batch_size < self.processes:
            raise ValueError(f"expected a batch_size of at least {self.processes}, a row for every process, got {batch_size}")
        self.rows = 0  # of the batch just given, over all processes
        if isinstance(data, Dataset):
            data = self._loader(data)
        if isinstance(data, DataLoader) and self.processes > 1 and not isinstance(data.sampler, DistributedSampler):
            raise ValueError(
                "expected data for several processes as a tensor, a split or a Dataset, which are shared out here, "
                "or a DataLoader with a torch.utils.data.DistributedSampler"
            )
        if not isinstance(data, DataLoader):
            data = as_tensors(data, model)
            self.on_disk = any(isinstance(column, Rows) for column in data)
            check_data(model, self._drawn(*(column[:_LOOK] for column in data) if self.on_disk else data))
            data = data if self.on_disk or not _fits(data, device) else tuple(column.to(device) for column in data)
        self.data = data
        sources = [getattr(data, "generator", None), getattr(getattr(data, "sampler", None), "generator", None)]
        self.generators = [source for source in sources if isinstance(source, torch.Generator)]
        self.under_way: dict[str, Any] | None = None  # where the epoch is, its random states included
        self.loaded = False

    def __len__(self) -> int:
        if not isinstance(self.data, tuple):
            return len(self.data)
        whole, rest = divmod(len(self.data[0]), self.batch_size)
        return whole + (rest >= (self.processes if self.shuffle else self.rank + 1))

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
            left = len(self.data[0]) - self.under_way["given"] * self.batch_size if isinstance(self.data, tuple) else 0
            self.rows = min(left, self.batch_size) if left else len(batch[0]) * self.processes
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
        given, workers = self.under_way["given"], max(getattr(column, "workers", 0) for column in self.data)
        at_once = 1 if workers else max(1, min(_BLOCK, _BLOCK_BYTES // (4 * self.share * max(1, self.data[0].shape[1:].numel()))))
        first = max(0, given - 1) // at_once
        blocks = _Blocks(self.data, self._order(len(self.data[0]), self.data[0].device), self.share * at_once, first)
        if workers:  # a generator of its own, so that the order of the noise does not depend on them
            blocks = DataLoader(blocks, batch_size=None, num_workers=workers, generator=torch.Generator())
        for number, block in enumerate(blocks, first):
            again = given and number == first
            if again:
                programs.set_random_state(self.under_way["block"], self.device)
            else:
                self.under_way["block"] = programs.random_state(self.device)
            batches = list(zip(*(column.split(self.share) for column in self._ready(block))))
            if again:
                programs.set_random_state(now, self.device)
                del batches[: given - first * at_once]
            yield from batches

    def _order(self, n: int, device: torch.device) -> Tensor | None:
        """Which rows come when; of several processes each has its share of every batch, in the first one's order."""
        order = torch.randperm(n, device=device) if self.shuffle else None
        if self.processes == 1:
            return order
        order = torch.arange(n, device=device) if order is None else order
        distributed.agree(order)
        return shared_out(order, self.batch_size, self.rank, self.processes, even=self.shuffle)

    def _ready(self, block: Args) -> Args:
        """Rows drawn, on the device; those from a disk are drawn and looked at before they go there."""
        if self.on_disk:
            block = self._drawn(*block)
            check_data(self.model, block)
        block = tuple(column.to(self.device, non_blocking=True) for column in block)
        return block if self.on_disk else self._drawn(*block)

    def _drawn(self, x: Tensor, *rest: Tensor) -> Args:
        return self.draw(x), *rest

    def _loader(self, data: Dataset) -> DataLoader:
        if self.processes == 1:
            return DataLoader(data, self.batch_size, shuffle=self.shuffle)
        return DataLoader(data, self.share, sampler=DistributedSampler(data, self.processes, self.rank, self.shuffle))

    def _of_loader(self, now: dict) -> Iterator[Args]:
        given = self.under_way["given"]
        if self.processes > 1:  # in another order in every epoch, the same for all
            epoch = torch.randint(2**31, ())
            distributed.agree(epoch)
            self.data.sampler.set_epoch(int(epoch))
        for number, batch in enumerate(self.data, 1):
            if number == given:
                programs.set_random_state(now, self.device)
            if number <= given:
                continue
            batch = tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
            batch = batch[: 2 if takes_labels(self.model) else 1]
            check_data(self.model, batch)  # still on the host, so looking at it waits for no device
            yield tuple(column.to(self.device, non_blocking=True) for column in batch)


def shared_out(order: Tensor, batch_size: int, rank: int, processes: int, even: bool = True) -> Tensor:
    """The rows of one process, batch after batch; each batch is shared without overlap.

    Where all need ``even`` numbers of batches, as steps do, a last batch of fewer rows than processes is left out.

    >>> [shared_out(torch.arange(11), 4, rank, 2).tolist() for rank in range(2)]
    [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9]]
    """
    whole = len(order) // batch_size * batch_size
    rest = order[whole:] if len(order) - whole >= processes or not even else order[:0]
    return torch.cat([order[:whole].view(-1, batch_size)[:, rank::processes].flatten(), rest[rank::processes]])


class _Blocks(Dataset):
    """Some rows of all columns at once, block after block, from the block ``first`` on."""

    def __init__(self, columns: Args, order: Tensor | None, size: int, first: int):
        self.columns, self.order, self.size, self.first = columns, order, size, first

    def __len__(self) -> int:
        return -(-(len(self.columns[0]) if self.order is None else len(self.order)) // self.size) - self.first

    def __getitem__(self, number: int) -> Args:
        if number >= len(self):
            raise IndexError
        number += self.first
        rows = slice(number * self.size, (number + 1) * self.size)
        return tuple(column[rows if self.order is None else self.order[rows]] for column in self.columns)


def takes_labels(model: Any) -> bool:
    """Whether a model is called with labels beside x: what it says itself, otherwise whether it asks for a second argument."""
    if hasattr(model, "takes_labels") or not callable(model):
        return getattr(model, "takes_labels", False)
    asked = inspect.signature(getattr(model, "forward", model)).parameters.values()
    return sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in asked) > 1


def checks_data(model: Any) -> bool:
    """Whether a model looks at the data itself before it is trained on them."""
    return hasattr(model, "check_data")


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
    if not all(isinstance(column, Tensor | Rows) for column in data):
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
