"""Mini-batches on the device, from a tensor, a split of a data set, a Dataset or a DataLoader."""

import inspect
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .. import programs
from ..data import inputs
from ..data.rows import Rows
from ..data.splits import Split
from . import distributed
from .devices import fits, sent

_BLOCK = 64  # batches gathered and drawn at once, so that a batch is a contiguous slice; of large ones fewer
_BLOCK_BYTES = 2**27
_LOG = logging.getLogger("pyroae")
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
        shared: whether the processes of a distributed job each take their share of every batch.
        least: rows that a process's share of the last batch has at least: 2 for batch normalisation. A smaller one is left out; its rows
            are others in every epoch.

    Raises:
        ValueError: data of another type, or none at all.
    """

    def __init__(
        self, data: Any, batch_size: int, device: torch.device, shuffle: bool, model: Any = None, shared: bool = False, least: int = 1
    ):
        self.device, self.batch_size, self.shuffle, self.model, self.least = device, batch_size, shuffle, model, least
        self.draw, self.schema = drawing(data), None
        self.rank, self.processes = (distributed.rank(), distributed.world_size()) if shared else (0, 1)
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
        if isinstance(data, DataLoader):
            _check_loader(data)
        else:
            data, self.schema = _read(data, model)
            self.on_disk = any(isinstance(column, Rows) for column in data)
            check_data(model, self._drawn(*(column[:_LOOK] for column in data) if self.on_disk else data))
            data = data if self.on_disk or not fits(data, device) else tuple(column.to(device) for column in data)
        self.data = data
        sources = [getattr(data, "generator", None), getattr(getattr(data, "sampler", None), "generator", None)]
        self.generators = [source for source in sources if isinstance(source, torch.Generator)]
        self.under_way: dict[str, Any] | None = None  # where the epoch is, its random states included
        self.loaded = False

    def __len__(self) -> int:
        if not isinstance(self.data, tuple):
            return len(self.data)
        n = len(self.data[0])
        whole, rest = divmod(n - self._left_out(n), self.batch_size)
        return whole + (rest >= (self.processes if self.shuffle else self.rank + 1))

    def _left_out(self, n: int) -> int:
        """How many of n rows are left out of an epoch, because they are too few for a batch."""
        rest = n % self.batch_size
        return rest if self.shuffle and rest < n and rest < self.least * self.processes else 0

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
        order = torch.randperm(n, device=device)[: n - self._left_out(n)] if self.shuffle else None
        if self.processes == 1:
            return order
        order = torch.arange(n, device=device) if order is None else order
        distributed.broadcast(order)
        return shared_out(order, self.batch_size, self.rank, self.processes, even=self.shuffle)

    def _ready(self, block: Args) -> Args:
        """Rows drawn, on the device; those from a disk are drawn and looked at before they go there."""
        if self.on_disk:
            block = self._drawn(*block)
            check_data(self.model, block)
        block = tuple(sent(column, self.device) for column in block)
        return block if self.on_disk else self._drawn(*block)

    def _drawn(self, x: Tensor, *rest: Tensor) -> Args:
        return self.draw(x), *rest

    def _loader(self, data: Dataset) -> DataLoader:
        if self.processes == 1:
            left_out = self._left_out(len(data)) if hasattr(data, "__len__") else 0
            return DataLoader(data, self.batch_size, shuffle=self.shuffle, drop_last=left_out > 0)
        return DataLoader(data, self.share, sampler=DistributedSampler(data, self.processes, self.rank, self.shuffle))

    def _of_loader(self, now: dict) -> Iterator[Args]:
        given = self.under_way["given"]
        if self.processes > 1:  # in another order in every epoch, the same for all
            epoch = torch.randint(2**31, ())
            distributed.broadcast(epoch)
            self.data.sampler.set_epoch(int(epoch))
        for number, batch in enumerate(inputs.batches_of(self.data), 1):
            if number == given:
                programs.set_random_state(now, self.device)
            if number <= given:
                continue
            batch = as_tensors(tuple(batch) if isinstance(batch, (list, tuple)) else batch, self.model)
            check_data(self.model, batch)  # still on the host, so looking at it waits for no device
            yield tuple(sent(column, self.device) for column in batch)


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
    """What a program is called with: ``(x,)``, or ``(x, y)`` with the labels that come along where the model takes them.

    Data may be arrays, tensors of any kind, tables of pandas or polars, splits of ``pa.data.load``, Datasets, DataLoaders, and tuples
    ``(x, y)`` of these. For an Autoencoder they are brought to its dtype, and tables to its columns by name.

    Raises:
        ValueError: another type, no rows, tensors of different lengths, or data without the labels that the model takes.
    """
    return _read(data, model)[0]


def drawing(data: Any) -> Callable[[Tensor], Tensor]:
    """What is applied to x whenever it is used: a split's own binarization, otherwise nothing."""
    return data.draw if isinstance(data, Split) else lambda x: x


def measure(model: Any, batches: Batches):
    """Let the model take what it needs from its training data before training: column names, and mean and scale of its columns."""
    if getattr(model, "schema", False) is None:
        model.schema = batches.schema
    likelihood = getattr(model, "likelihood", None)
    if likelihood is None or likelihood.measured:
        return
    if isinstance(batches.data, tuple):
        x = batches.data[0]
        x = x[: inputs.rows_to_look_at(x)]
    else:
        with torch.random.fork_rng(devices=[]):
            states = [source.get_state() for source in batches.generators]
            x = torch.cat([batch[0] if isinstance(batch, (list, tuple)) else batch for batch in itertools.islice(batches.data, _LOOK)])
            batches._set_generators(states)
    likelihood.measure(x.to(batches.device))


def _read(data: Any, model: Any) -> tuple[Args, Any]:
    found = inputs.read(data, inputs.wanted_by(model))
    if isinstance(found.x, Tensor):
        found = replace(found, x=found.x.detach())
    if found.x.dim() == 0 or len(found.x) == 0:
        raise ValueError(f"expected at least one example, got a tensor of shape {tuple(found.x.shape)}")
    labels = takes_labels(model) or (not hasattr(model, "takes_labels") and isinstance(data, (tuple, list)))
    if not labels:
        return (found.x,), found.schema
    if found.y is None and not _optional(model):
        raise ValueError(
            "this model takes labels, but the data have none; "
            "give data as a tuple (x, y), or data with labels: pa.data.load(..., labels=...)"
        )
    return ((found.x,) if found.y is None else (found.x, found.y)), found.schema


def _optional(model: Any) -> bool:
    """Whether a model can do without the labels that it takes."""
    return getattr(getattr(model, "condition", None), "optional", False) or not takes_labels(model)


def _check_loader(loader: DataLoader):
    """``ValueError`` for a loader that does not say how many batches it has, or has none."""
    try:
        batches = len(loader)
    except TypeError:
        raise ValueError(
            "expected a DataLoader whose length is known, got one over an IterableDataset without __len__; "
            "give its class __len__, the number of examples"
        ) from None
    if batches == 0:
        raise ValueError(
            f"expected at least one batch, got none from the DataLoader: batch_size={loader.batch_size}, drop_last={loader.drop_last}"
        )
