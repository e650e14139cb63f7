"""Data too large for memory: rows that stay where they are until they are asked for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """What stands for a tensor ``(N, *event)`` whose rows are read when they are indexed, by a slice or by row numbers.

    Args:
        read: gives the rows of some numbers, which ascend, as an array; they become float32, unless they are bytes.
        shape: of the whole.
        index: the row numbers that these rows have for ``read``, if not all.
        steps: functions of the tensor just read, applied in turn.
        device: where the rows read go.
        workers: processes that read beside training, where reading is slow (decoding images).

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
        """What they would take as float32."""
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
        """The same rows with a function applied to what is read."""
        return replace(self, steps=(*self.steps, step))

    def chosen(self, which: Tensor) -> "Rows":
        """Those of the rows; in ascending order, which disks like."""
        which = which.sort().values.numpy()
        return replace(self, index=which if self.index is None else self.index[which], shape=torch.Size([len(which), *self.shape[1:]]))

    def to(self, device: Any, non_blocking: bool = False) -> "Rows":
        """The same rows, read to a device; as a tensor's, but that nothing is read yet."""
        return replace(self, device=torch.device(device))


def tensor_of(array: np.ndarray) -> Tensor:
    """Numbers of any kind and byte order as float32; bytes stay bytes."""
    with np.errstate(over="ignore"):  # becomes infinity, which is refused where it is looked for
        return torch.from_numpy(np.ascontiguousarray(array if array.dtype == np.uint8 else array.astype(np.float32)))
