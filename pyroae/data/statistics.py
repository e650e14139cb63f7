"""Statistics of many columns of numbers at once, from which their kinds are inferred."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SAMPLE = 20_000  # rows for distinct values and skewness
_FIRST = 1000  # rows for a first check whether numbers are integers
_BLOCK = 1_000_000  # numbers in memory at once


@dataclass
class Statistics:
    """Statistics of the columns of numbers, one entry for each."""

    low: np.ndarray
    high: np.ndarray
    holes: np.ndarray
    whole: np.ndarray
    distinct: np.ndarray
    skew: np.ndarray
    log_skew: np.ndarray
    spread: np.ndarray

    def of(self, i: int | Sequence[int]) -> "Statistics":
        """The statistics of one column or of several."""
        return Statistics(**{name: values[i] for name, values in vars(self).items()})


def statistics(numbers: dict[str, np.ndarray]) -> Statistics:
    """Statistics of columns of the same length, by name."""
    columns = list(numbers.values())
    if not columns:
        return Statistics(*[np.zeros(0)] * 8)
    at_once = max(1, _BLOCK // max(1, len(columns[0])))
    parts = (columns[start : start + at_once] for start in range(0, len(columns), at_once))
    blocks = [_block(np.stack(part) if len(part) > 1 else part[0][None]) for part in parts]
    return Statistics(*(np.concatenate(parts) for parts in zip(*blocks)))


def _block(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """The statistics of columns ``(columns, rows)``, without infinite and missing values."""
    low, high, holes = x.min(1), x.max(1), np.zeros(len(x), int)
    every = np.isfinite(low) & np.isfinite(high)
    if not every.all():
        present = np.isfinite(x)
        every = present.any(1)
        low = np.where(every, np.min(x, 1, where=present, initial=np.inf), 0.0)
        high = np.where(every, np.max(x, 1, where=present, initial=-np.inf), 0.0)
        holes = np.isnan(x).sum(1)
    whole = every & _whole(x[:, :_FIRST])
    whole[whole] = _whole(x[whole])
    some = x[:, :: max(1, x.shape[1] // _SAMPLE)]
    sample = np.sort(np.where(np.isfinite(some), some, np.nan), 1)
    distinct = ((sample[:, 1:] != sample[:, :-1]) & ~np.isnan(sample[:, 1:])).sum(1) + ~np.isnan(sample[:, 0])
    skew, spread = _moments(sample)
    positive = every & (low > 0)
    log_skew = np.where(positive, _moments(np.log(np.where(positive[:, None], sample, 1.0)))[0], np.inf)
    return low, high, holes, whole, distinct, skew, log_skew, spread


def _whole(x: np.ndarray) -> np.ndarray:
    """Whether all numbers of each column are integers, except missing ones."""
    with np.errstate(invalid="ignore"):
        return (((x == np.floor(x)) & np.isfinite(x)) | np.isnan(x)).all(1)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Skewness and standard deviation of columns ``(columns, rows)``, without overflow; NaN is ignored."""
    present = ~np.isnan(x)
    largest = np.maximum(np.where(present, np.abs(x), 0.0).max(1, keepdims=True), 1e-300)
    n, x = np.maximum(present.sum(1, keepdims=True), 1), np.where(present, x / largest, 0.0)
    centred = np.where(present, x - x.sum(1, keepdims=True) / n, 0.0)
    spread = np.sqrt((centred**2).sum(1) / n[:, 0])
    skew = np.where(spread > 1e-12, (centred**3).sum(1) / n[:, 0] / np.maximum(spread, 1e-12) ** 3, 0.0)
    return skew, spread * np.minimum(largest[:, 0], 1e300)
