"""Devices: which one is used, whether data fit on it, and how they get there."""

import functools
import logging
from collections.abc import Iterable

import torch
from torch import Tensor

_LOG = logging.getLogger("pyroae")


def sent(column: Tensor, device: torch.device) -> Tensor:
    """A column on the device; on the way to a GPU in pinned memory, so that the host does not wait until the GPU is free."""
    if device.type == "cuda" and column.device.type == "cpu":
        column = column.pin_memory()
    return column.to(device, non_blocking=True)


def fits(data: Iterable[Tensor], device: torch.device) -> bool:
    """Whether data take at most a quarter of a GPU's free memory."""
    return device.type != "cuda" or sum(column.nbytes for column in data) < torch.cuda.mem_get_info(device)[0] / 4


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is CUDA where there is a GPU that runs this torch's kernels.

    Raises:
        ValueError: CUDA that is absent, a GPU without kernels, or another device.
    """
    if device == "auto":
        cuda = torch.device("cuda")
        return cuda if torch.cuda.is_available() and _runs(cuda) else torch.device("cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        hint = "; Apple's GPUs have no float64, which sums of log densities need" if str(device).startswith("mps") else ""
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda', got {str(device)!r}{hint}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: CUDA was asked for, but this machine has none that torch can use; use device='auto' or 'cpu'")
    if found.type == "cuda" and not _runs(found):
        raise ValueError(f"device: {found} runs no kernel of this torch {torch.__version__}; install one built for it, or use device='cpu'")
    return found


@functools.cache
def _runs(device: torch.device) -> bool:
    """Whether a GPU runs a kernel: a wheel of torch may have none for it."""
    try:
        return (torch.ones(2, device=device) + 1).sum().item() == 4.0
    except RuntimeError as error:
        _LOG.warning("device: %s is left alone, it runs no kernel of this torch: %s", device, str(error).partition("\n")[0])
        return False
