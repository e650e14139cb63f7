"""Device selection and transfer."""

import functools
import logging
from collections.abc import Iterable

import torch
from torch import Tensor

_LOG = logging.getLogger("pyroae")


def to_device(column: Tensor, device: torch.device) -> Tensor:
    """Move a column to the device; to a GPU through pinned memory, so that the host does not wait."""
    if device.type == "cuda" and column.device.type == "cpu":
        column = column.pin_memory()
    return column.to(device, non_blocking=True)


def fits_on_device(data: Iterable[Tensor], device: torch.device) -> bool:
    """Whether data take at most a quarter of a GPU's free memory."""
    return device.type != "cuda" or sum(column.nbytes for column in data) < torch.cuda.mem_get_info(device)[0] / 4


def resolve_device(device: str | torch.device) -> torch.device:
    """Resolve a device name; ``"auto"`` is CUDA if there is a GPU that this build of torch supports.

    Raises:
        ValueError: CUDA is not available, the GPU is not supported, or another device.
    """
    if device == "auto":
        cuda = torch.device("cuda")
        return cuda if torch.cuda.is_available() and _runs_kernels(cuda) else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    if resolved is None or resolved.type not in ("cpu", "cuda"):
        hint = "; Apple's GPUs have no float64, which sums of log densities need" if str(device).startswith("mps") else ""
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda', got {str(device)!r}{hint}")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: CUDA was asked for, but this machine has none that torch can use; use device='auto' or 'cpu'")
    if resolved.type == "cuda" and not _runs_kernels(resolved):
        raise ValueError(f"device: {resolved} is not supported by torch {torch.__version__}; install a build for it, or use device='cpu'")
    return resolved


@functools.cache
def _runs_kernels(device: torch.device) -> bool:
    """Whether this build of torch has kernels for a GPU."""
    try:
        return (torch.ones(2, device=device) + 1).sum().item() == 4.0
    except RuntimeError as error:
        _LOG.warning("device: %s is not used, this build of torch has no kernels for it: %s", device, str(error).partition("\n")[0])
        return False
