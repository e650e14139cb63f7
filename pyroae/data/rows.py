"""Rows on disk that are read when they are indexed, for data too large for memory."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Stands for a tensor ``(N, *event)`` whose rows are read when they are indexed, by a slice or by row numbers.

    Args:
        read: returns the rows with the given row numbers, in ascending order, as an array; it becomes float32, unless it has bytes.
        shape: of all rows.
        index: row numbers for ``read``, if these are a subset of its rows.
        steps: functions applied to what was read, in order.
        device: of the rows that are read.
        workers: processes that read during training, for slow reading (decoding images).

    >>> squares = Rows(lambda rows: rows[:, None] ** 2, torch.Size([1_000_000, 1]))
    >>> squares[torch.tensor([5, 2])], squares[:3].flatten()
    (tensor([[25.],
            [ 4.]]), tensor([0., 1., 4.]))
    """

    read: Callable[[np.ndarray], np.ndarray]
    shape: torch.Size
    index: np.ndarray | None = None
    steps: tuple[Callable[[Tensor], Tensor], ...] = ()
    device: torch.device = torch.device("cpu")
    workers: int = 0

    def __len__(self) -> int:
        return self.shape[0]

    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes as float32."""
        return 4 * self.shape.numel()

    def __getitem__(self, which: int | slice | Tensor) -> Tensor:
        if isinstance(which, int):
            return self[which : which + 1][0]
        numbers = np.arange(*which.indices(len(self))) if isinstance(which, slice) else which.cpu().numpy()
        numbers = numbers if self.index is None else self.index[numbers]
        order = numbers.argsort(kind="stable")
        x = tensor_of(self.read(numbers[order])[order.argsort()])
        for step in self.steps:
            x = step(x)
        return x.to(self.device)

    def then(self, step: Callable[[Tensor], Tensor]) -> "Rows":
        """The same rows with a function applied after reading."""
        return replace(self, steps=(*self.steps, step))

    def chosen(self, which: Tensor) -> "Rows":
        """A subset of the rows in ascending order, which is faster to read."""
        which = which.sort().values.numpy()
        return replace(self, index=which if self.index is None else self.index[which], shape=torch.Size([len(which), *self.shape[1:]]))

    def to(self, device: Any, non_blocking: bool = False) -> "Rows":
        """The same rows on another device; nothing is read yet."""
        return replace(self, device=torch.device(device))


def tensor_of(array: np.ndarray) -> Tensor:
    """An array of any type and byte order as a float32 tensor; uint8 is kept."""
    with np.errstate(over="ignore"):  # becomes infinity, which is checked elsewhere
        return torch.from_numpy(np.ascontiguousarray(array if array.dtype == np.uint8 else array.astype(np.float32)))
