"""Mini-batches on the device, from a tensor, a split of a data set, a Dataset or a DataLoader."""

import inspect
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .. import programs
from ..data import inputs
from ..data.rows import Rows
from ..data.splits import FEW, Split
from . import distributed
from .blocks import Args, Blocks, shard
from .devices import fits_on_device, to_device

_BLOCK = 256  # maximum number of batches that are gathered and transformed together, so that a batch is a contiguous slice
_BLOCK_BYTES = 2**27
_CACHE_BYTES = 2**20  # of a block in a processor's cache, where it stays until its batches are used
_LOG = logging.getLogger("pyroae")
_CHECKED_ROWS = 1000  # rows on disk that are checked before training


class Batches:
    """Iterable over the batches of one epoch; ``len`` is their number. A batch is the arguments of the programs.

    Tensors are moved to the device if they take at most a quarter of its free memory. Rows on disk are read in blocks of
    batches and checked when they are read. For a split of ``pa.data.load``, its method ``draw`` is applied to x on the
    device in every epoch.

    ``state_dict`` is the position within the epoch; another ``Batches`` of the same data that loads it, with the random
    state of that time, continues with the same batches. (A DataLoader is read again up to the position.)

    Args:
        data: data accepted by ``as_tensors``, or a Dataset or a DataLoader.
        batch_size: rows in a batch.
        device: device of the batches.
        shuffle: whether to reorder the rows in every epoch.
        model: its ``takes_labels`` and ``takes_inputs`` select x, (x, y), (x, u) or (x, y, u), its ``check_data`` checks the data.
        sharded: whether each process of a distributed job takes a share of every batch.
        min_rows: minimum rows of a process's share of the last batch: 2 for batch normalisation. A smaller last batch is left out;
            its rows differ between epochs.

    Raises:
        ValueError: data of an unsupported type, or no data.
    """

    def __init__(
        self, data: Any, batch_size: int, device: torch.device, shuffle: bool, model: Any = None, sharded: bool = False, min_rows: int = 1
    ):
        self.device, self.batch_size, self.shuffle, self.model, self.min_rows = device, batch_size, shuffle, model, min_rows
        self.draw, self.schema = draw_function(data), None
        self.is_drawn = isinstance(data, Split) and data.dynamic
        self.rank, self.processes = (distributed.rank(), distributed.world_size()) if sharded else (0, 1)
        self.share = len(range(self.rank, batch_size, self.processes))  # rows of a batch for this process
        if batch_size < self.processes:
            raise ValueError(f"expected a batch_size of at least {self.processes}, a row for every process, got {batch_size}")
        self.rows = 0  # of the current batch, over all processes
        if isinstance(data, Dataset):
            data = self._loader(data)
        if isinstance(data, DataLoader) and self.processes > 1 and not isinstance(data.sampler, DistributedSampler):
            raise ValueError(
                "expected data for several processes as a tensor, a split or a Dataset, which are sharded here, "
                "or a DataLoader with a torch.utils.data.DistributedSampler"
            )
        if isinstance(data, DataLoader):
            _check_loader(data)
        else:
            data, self.schema = _read(data, model)
            self.on_disk = any(isinstance(column, Rows) for column in data)
            check_data(model, self._apply_draw(*(column[:_CHECKED_ROWS] for column in data) if self.on_disk else data))
            data = data if self.on_disk or not fits_on_device(data, device) else tuple(column.to(device) for column in data)
        self.data = data
        sources = [getattr(data, "generator", None), getattr(getattr(data, "sampler", None), "generator", None)]
        self.generators = [source for source in sources if isinstance(source, torch.Generator)]
        self.epoch: dict[str, Any] | None = None  # position and random states within the current epoch
        self.loaded = False

    def __len__(self) -> int:
        if not isinstance(self.data, tuple):
            return len(self.data)
        n = len(self.data[0])
        full, rest = divmod(n - self._rows_left_out(n), self.batch_size)
        return full + (rest >= (self.processes if self.shuffle else self.rank + 1))

    def _rows_left_out(self, n: int) -> int:
        """Number of rows in a last batch that is too small."""
        rest = n % self.batch_size
        return rest if self.shuffle and rest < n and rest < self.min_rows * self.processes else 0

    def state_dict(self) -> dict[str, Any]:
        """Position within the epoch, and random states of the loader's generators."""
        return {"generators": [source.get_state() for source in self.generators], "epoch": self.epoch and dict(self.epoch)}

    def load_state_dict(self, state: dict[str, Any]):
        """Restore ``state_dict``: the next iteration continues from its position."""
        self.epoch, self.loaded = state["epoch"], state["epoch"] is not None
        self._set_generators(state["generators"])

    def __iter__(self) -> Iterator[Args]:
        for block in self.blocks():
            yield from block

    def blocks(self) -> Iterator[Iterator[Args]]:
        """Batches in blocks; while the batches of a block are taken, no code of the data runs."""
        random_state = programs.random_state(self.device)
        if self.loaded:
            programs.set_random_state(self.epoch["order"], self.device)
            self._set_generators(self.epoch["generators"])
        else:
            generators = self.state_dict()["generators"]
            self.epoch = {"given": 0, "order": random_state, "block": random_state, "generators": generators}
        self.loaded = False
        for block in self._iterate_tensors(random_state) if isinstance(self.data, tuple) else self._iterate_loader(random_state):
            yield self._counted(block)
        self.epoch = None

    def _counted(self, block: Iterable[Args]) -> Iterator[Args]:
        """The batches of a block, each counted before it is given."""
        rows = len(self.data[0]) if isinstance(self.data, tuple) else None
        for batch in block:
            left = 0 if rows is None else rows - self.epoch["given"] * self.batch_size
            self.rows = min(left, self.batch_size) if left else len(batch[0]) * self.processes
            self.epoch["given"] += 1
            yield batch

    def first(self) -> Args:
        """The first batch, without starting an epoch."""
        batch = next(iter(self))
        self.epoch = None
        return batch

    def _set_generators(self, states: list[Tensor]):
        for source, state in zip(self.generators, states):
            source.set_state(state)

    def _iterate_tensors(self, random_state: dict) -> Iterator[Iterable[Args]]:
        position, workers = self.epoch["given"], max(getattr(column, "workers", 0) for column in self.data)
        order = self._order(len(self.data[0]), self.data[0].device)
        per_block = 1 if workers else self._batches_per_block()
        first = max(0, position - 1) // per_block
        blocks = Blocks(self.data, order, self.share * per_block, first)
        if not (self.on_disk or self.is_drawn):  # no code of the data, and no random numbers
            if position:
                programs.set_random_state(random_state, self.device)
            batches = (batch for block in blocks for batch in self._split(block))
            yield itertools.islice(batches, position - first * per_block, None)
            return
        if workers:  # with a separate generator, so that the noise does not depend on the number of workers
            blocks = DataLoader(blocks, batch_size=None, num_workers=workers, generator=torch.Generator())
        for number, block in enumerate(blocks, first):
            is_repeated = position and number == first
            if is_repeated:
                programs.set_random_state(self.epoch["block"], self.device)
            else:
                self.epoch["block"] = programs.random_state(self.device)
            batches = self._split(block)
            if is_repeated:
                programs.set_random_state(random_state, self.device)
                del batches[: position - first * per_block]
            yield batches

    def _batches_per_block(self) -> int:
        widest = max(1, *(column.shape[1:].numel() for column in self.data))
        limit = _CACHE_BYTES if self.device.type == "cpu" and not self.on_disk else _BLOCK_BYTES
        return max(1, min(_BLOCK, limit // (4 * self.share * widest)))

    def _split(self, block: Args) -> list[Args]:
        """The batches of a block."""
        return list(zip(*(column.split(self.share) for column in self._prepare(block))))

    def _order(self, n: int, device: torch.device) -> Tensor | None:
        """Order of the rows; of several processes the main one's, sharded."""
        order = torch.randperm(n, device=device)[: n - self._rows_left_out(n)] if self.shuffle else None
        if self.processes == 1:
            return order
        order = torch.arange(n, device=device) if order is None else order
        distributed.broadcast(order)
        return shard(order, self.batch_size, self.rank, self.processes, even=self.shuffle)

    def _prepare(self, block: Args) -> Args:
        """Apply ``draw`` and move a block to the device; rows from disk are drawn and checked on the host."""
        if self.on_disk:
            block = self._apply_draw(*block)
            check_data(self.model, block)
        block = tuple(to_device(column, self.device) for column in block)
        return block if self.on_disk else self._apply_draw(*block)

    def _apply_draw(self, x: Tensor, *rest: Tensor) -> Args:
        return self.draw(x), *rest

    def _loader(self, data: Dataset) -> DataLoader:
        if self.processes == 1:
            left_out = self._rows_left_out(len(data)) if hasattr(data, "__len__") else 0
            return DataLoader(data, self.batch_size, shuffle=self.shuffle, drop_last=left_out > 0)
        return DataLoader(data, self.share, sampler=DistributedSampler(data, self.processes, self.rank, self.shuffle))

    def _iterate_loader(self, random_state: dict) -> Iterator[list[Args]]:
        position = self.epoch["given"]
        if self.processes > 1:  # a new order in every epoch, the same in all processes
            epoch = torch.randint(2**31, ())
            distributed.broadcast(epoch)
            self.data.sampler.set_epoch(int(epoch))
        for number, batch in enumerate(inputs.batches_of(self.data), 1):
            if number == position:
                programs.set_random_state(random_state, self.device)
            if number <= position:
                continue
            batch = as_tensors(tuple(batch) if isinstance(batch, (list, tuple)) else batch, self.model)
            check_data(self.model, batch)  # on the host, so that no device is synchronized
            yield [tuple(to_device(column, self.device) for column in batch)]


def takes_labels(model: Any) -> bool:
    """Whether a model takes labels besides x: its attribute ``takes_labels``, otherwise whether it requires a second argument."""
    if hasattr(model, "takes_labels") or not callable(model):
        return getattr(model, "takes_labels", False)
    parameters = inspect.signature(getattr(model, "forward", model)).parameters.values()
    return sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters) > 1


def takes_inputs(model: Any) -> bool:
    """Whether the encoder of a model sees inputs u, the last argument of its programs, instead of x."""
    return getattr(model, "takes_inputs", False) is True


def checks_data(model: Any) -> bool:
    """Whether a model checks its training data."""
    return hasattr(model, "check_data")


def check_data(model: Any, args: Args):
    """Let the model check data if it has a method ``check_data``."""
    if checks_data(model):
        model.check_data(*args)


def as_tensors(data: Any, model: Any = None) -> Args:
    """A program's arguments: x, then labels y if the model takes them, then inputs u of its encoder if it takes them.

    Data may be arrays, tensors, tables of pandas or polars, splits of ``pa.data.load``, Datasets, DataLoaders, and tuples
    ``(x, y)`` of these. For an Autoencoder, tensors are converted to its dtype and tables to its columns, by name.

    Raises:
        ValueError: an unsupported type, no rows, tensors of different lengths, or no labels for a model that takes them.
    """
    return _read(data, model)[0]


def draw_function(data: Any) -> Callable[[Tensor], Tensor]:
    """The function that is applied to x in every use: a split's binarization, otherwise the identity."""
    return data.draw if isinstance(data, Split) else lambda x: x


def measure(model: Any, batches: Batches):
    """Set what the model takes from its training data: column names, and mean and scale of the columns."""
    if getattr(model, "schema", False) is None:
        model.schema = batches.schema
    parts = [(inputs.likelihood_of(model), 0), (getattr(model, "inputs", None) if takes_inputs(model) else None, -1)]
    for part, place in parts:
        if part is not None and not part.measured:
            part.measure(_some_rows(batches, place).to(batches.device))


def _some_rows(batches: Batches, place: int) -> Tensor:
    """Rows of a column from which mean and scale are computed."""
    if isinstance(batches.data, tuple):
        column = batches.data[place]
        return column[: inputs.rows_to_look_at(column)]
    with torch.random.fork_rng(devices=[]):
        states = [source.get_state() for source in batches.generators]
        some, rows, size = [], 0, 0
        for batch in batches.data:
            some.append(batch[place] if isinstance(batch, (list, tuple)) else batch)
            rows, size = rows + len(some[-1]), size + some[-1].nbytes
            if rows >= inputs.LOOK or size >= FEW:
                break
        column = torch.cat(some)
        batches._set_generators(states)
    return column


def _read(data: Any, model: Any) -> tuple[Args, Any]:
    rows = inputs.read(data, inputs.wanted_by(model))
    if isinstance(rows.x, Tensor):
        rows = replace(rows, x=rows.x.detach())
    if rows.x.dim() == 0 or len(rows.x) == 0:
        raise ValueError(f"expected at least one example, got a tensor of shape {tuple(rows.x.shape)}")
    args = [rows.x]
    if takes_labels(model) or (not hasattr(model, "takes_labels") and isinstance(data, (tuple, list))):
        if rows.y is None and not _labels_are_optional(model):
            raise ValueError(
                "this model takes labels, but the data have none; "
                "give data as a tuple (x, y), or data with labels: pa.data.load(..., labels=...)"
            )
        args += [] if rows.y is None else [rows.y]
    if takes_inputs(model):
        if rows.u is None:
            order = "(x, y, u)" if takes_labels(model) else "(x, u)"
            raise ValueError(
                "this model's encoder sees inputs u instead of x, but the data have none; "
                f"give data as a tuple {order}, or data with inputs: pa.data.load(..., inputs=...)"
            )
        args.append(rows.u.detach() if isinstance(rows.u, Tensor) else rows.u)
    return tuple(args), rows.schema


def _labels_are_optional(model: Any) -> bool:
    """Whether a model can be called without labels."""
    return (getattr(getattr(model, "condition", None), "optional", False) and not takes_inputs(model)) or not takes_labels(model)


def _check_loader(loader: DataLoader):
    """``ValueError`` for a loader without a length, or without batches."""
    try:
        batches = len(loader)
    except TypeError:
        raise ValueError(
            "expected a DataLoader with a length, got one over an IterableDataset without __len__; "
            "give its class __len__, the number of examples"
        ) from None
    if batches == 0:
        raise ValueError(
            f"expected at least one batch, got none from the DataLoader: batch_size={loader.batch_size}, drop_last={loader.drop_last}"
        )
