"""64-bit digests of rows, which identify the rows of a split in a file that has changed."""

import numpy as np
import torch
from torch import Tensor

from .rows import Rows

_CHUNK = 8192


def row_digests(x: Tensor | Rows) -> np.ndarray:
    """A 64-bit digest of every row of x, ``(N,)``, which depends on the content of that row alone.

    The sum of the entries' bits times random odd numbers modulo 2^64, mixed (Steele et al. 2014). Not cryptographic.

    >>> a, b, c = row_digests(torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]))
    >>> bool(a == c), bool(a == b)
    (True, False)
    """
    parts = [_digests(x[start : start + _CHUNK]) for start in range(0, len(x), _CHUNK)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _digests(x: Tensor) -> np.ndarray:
    rows = x.detach().cpu().float().flatten(1).contiguous().numpy() + np.float32(0)  # -0 becomes 0
    bits = rows.view(np.uint32).astype(np.uint64)
    bits[np.isnan(rows)] = 0x7FC00000
    with np.errstate(over="ignore"):
        factors = _mixed(np.arange(1, bits.shape[1] + 1, dtype=np.uint64)) | np.uint64(1)
        return _mixed((bits * factors).sum(1, dtype=np.uint64))


def _mixed(z: np.ndarray) -> np.ndarray:
    """The mixing function of SplitMix64."""
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def combined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Digests of pairs of rows.

    >>> one, two = np.array([1], np.uint64), np.array([2], np.uint64)
    >>> bool(combined(one, two) == combined(two, one))
    False
    """
    return _mixed(first ^ _mixed(second))


def find_rows(wanted: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Positions in ``present`` of the digests ``wanted``, each used at most once, and -1 for a missing digest.

    >>> find_rows(np.array([7, 5, 5], np.uint64), np.array([5, 6, 7, 5], np.uint64))
    array([2, 0, 3])
    """
    order = np.argsort(present, kind="stable")
    ranks = np.empty(len(wanted), np.int64)  # of a digest among equal ones
    by_value = np.argsort(wanted, kind="stable")
    starts = np.r_[True, wanted[by_value][1:] != wanted[by_value][:-1]] if len(wanted) else np.zeros(0, bool)
    ranks[by_value] = np.arange(len(wanted)) - np.maximum.accumulate(np.where(starts, np.arange(len(wanted)), 0))
    at = np.searchsorted(present[order], wanted) + ranks
    valid = at < len(present)
    position = np.where(valid, order[np.minimum(at, len(present) - 1)] if len(present) else -1, -1)
    return (
        np.where(valid & (position >= 0), np.where(present[position] == wanted, position, -1), -1)
        if len(present)
        else np.full(len(wanted), -1)
    )


def as_tensor(digests: np.ndarray) -> Tensor:
    """Digests as int64, which safetensors supports."""
    return torch.from_numpy(digests.view(np.int64))
