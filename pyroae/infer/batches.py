"""Mini-batches on the device, from a tensor, a split of a data set, a Dataset or a DataLoader."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

_BLOCK = 64  # batches gathered at once, so that a batch is a contiguous slice


class Batches:
    """One epoch of batches each time it is iterated; ``len`` is their number, ``rows`` that of the data.

    Tensors live on the device where they fit into a quarter of its free memory. An object with a tensor ``x`` and a
    method ``draw`` (a split of ``pa.data.load``) has ``draw`` applied to each batch, on the device.

    Raises:
        ValueError: data of another type, or none at all.
    """

    def __init__(self, data: Any, batch_size: int, device: torch.device, shuffle: bool, check: Callable[[Tensor], None] | None = None):
        self.device, self.batch_size, self.shuffle = device, batch_size, shuffle
        self.draw = getattr(data, "draw", None) or (lambda x: x)
        data = getattr(data, "x", data) if not isinstance(data, Dataset | DataLoader) else data
        self.check = None
        if isinstance(data, Dataset):
            data = DataLoader(data, batch_size, shuffle=shuffle)
        if isinstance(data, Tensor):
            if data.dim() == 0 or len(data) == 0:
                raise ValueError(f"expected at least one datum, got a tensor of shape {tuple(data.shape)}")
            if check:
                check(self.draw(data))
            data = data.to(device) if _fits(data, device) else data
        elif isinstance(data, DataLoader):
            self.check = check
        else:
            raise ValueError(
                "expected data as a tensor (N, *event), a split such as pa.data.load(...).train, a Dataset or a DataLoader, "
                f"got {type(data).__name__}"
            )
        self.data = data

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size) if isinstance(self.data, Tensor) else len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        return self._of_tensor() if isinstance(self.data, Tensor) else self._of_loader()

    def _of_tensor(self) -> Iterator[Tensor]:
        n, x = len(self.data), self.data
        order = torch.randperm(n, device=x.device) if self.shuffle else None
        for start in range(0, n, self.batch_size * _BLOCK):
            rows = slice(start, start + self.batch_size * _BLOCK)
            for batch in x[rows if order is None else order[rows]].split(self.batch_size):
                yield self.draw(batch.to(self.device, non_blocking=True))

    def _of_loader(self) -> Iterator[Tensor]:
        for batch in self.data:
            batch = batch[0] if isinstance(batch, (list, tuple)) else batch
            if self.check:  # still on the host, so looking at it waits for no device
                self.check(batch)
            yield batch.to(self.device, non_blocking=True)


def _fits(x: Tensor, device: torch.device) -> bool:
    return device.type != "cuda" or x.nbytes < torch.cuda.mem_get_info(device)[0] / 4


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
