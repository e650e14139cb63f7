"""Rows of data in an order, of one process, and in blocks."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.rows import Rows

Args = tuple[Tensor | Rows, ...]  # a program's arguments: x, labels y if it takes them, inputs u of the encoder if it takes them


def shard(order: Tensor, batch_size: int, rank: int, processes: int, even: bool = True) -> Tensor:
    """The rows of one process; every batch is split without overlap.

    ``even``: whether all processes need the same number of batches, as in training; then a last batch with fewer rows than
    processes is left out.

    >>> [shard(torch.arange(11), 4, rank, 2).tolist() for rank in range(2)]
    [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9]]
    """
    full = len(order) // batch_size * batch_size
    rest = order[full:] if len(order) - full >= processes or not even else order[:0]
    return torch.cat([order[:full].view(-1, batch_size)[:, rank::processes].flatten(), rest[rank::processes]])


class Blocks(Dataset):
    """Blocks of rows of all columns, from block ``first``."""

    def __init__(self, columns: Args, order: Tensor | None, size: int, first: int):
        self.columns, self.order, self.size, self.first = columns, order, size, first

    def __len__(self) -> int:
        return -(-(len(self.columns[0]) if self.order is None else len(self.order)) // self.size) - self.first

    def __getitem__(self, number: int) -> Args:
        if number >= len(self):
            raise IndexError
        number += self.first
        rows = slice(number * self.size, (number + 1) * self.size)
        return tuple(column[rows] if self.order is None else _gather(column, self.order[rows]) for column in self.columns)


def _gather(column: Any, rows: Tensor) -> Any:
    """Rows of a tensor, or of a column on disk; ``index_select`` takes a third of the time of indexing."""
    return column.index_select(0, rows) if isinstance(column, Tensor) else column[rows]
