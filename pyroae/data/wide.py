"""Tables of many columns of one kind, such as pixels or genes, and the column of classes next to them."""

import re

import numpy as np
import pandas as pd

from .statistics import Statistics

CLASS = re.compile(r"label|labels|class|target|species|y", re.I)
_WIDE = 100  # least number of columns that are taken to have one kind
PIXELS = 64  # least number of columns for grey levels
_LEVELS = 256  # at most so many distinct grey levels
_ROWS = 1000  # rows whose distinct values are counted
_CLASSES = 100


def joint_kind(stats: Statistics, columns: list[np.ndarray]) -> str | None:
    """One kind for all columns: unit for grey levels, count or real for tables as wide as genes; otherwise ``None``."""
    if len(columns) < PIXELS:
        return None
    whole, low, high = bool(stats.whole.all()), stats.low.min(), stats.high.max()
    if low >= 0 and not stats.holes.any() and (stats.high == high).mean() > 0.3:
        if (whole and 7 <= high <= 255) or (high == 1 and not whole and _in_steps(columns)):
            return "unit"
    if len(columns) < _WIDE:
        return None
    if whole:
        return "count" if low >= 0 and high > 1 and (stats.low == 0).mean() > 0.5 else None
    return "real" if stats.whole.mean() <= 0.5 else None


def _in_steps(columns: list[np.ndarray]) -> bool:
    """Whether values are grey levels that were divided by their maximum."""
    return len(np.unique(np.stack([column[:_ROWS] for column in columns]))) <= _LEVELS


def class_column(frame: pd.DataFrame, numbers: dict[str, np.ndarray], stats: Statistics) -> str | None:
    """The column that may hold the classes of the rows: one called label, class, target, species or y, or else the first or last.

    The first or last column of numbers holds classes where it goes from 0 or 1 upwards without a gap, every number in about as many
    rows as any other, and the column next to it does not.
    """
    for name in frame:
        if CLASS.fullmatch(str(name)) and _are_classes(frame[name], numbers.get(name)):
            return name
    names = list(numbers)
    for edge, beside in ((0, 1), (-1, -2)):
        if len(names) > PIXELS and names[edge] == frame.columns[edge]:
            balanced = [_balanced(numbers[names[i]], stats.of(i)) for i in (edge, beside)]
            if balanced == [True, False]:
                return names[edge]
    return None


def _are_classes(series: pd.Series, values: np.ndarray | None) -> bool:
    if series.isna().any() or (values is not None and not bool((values == np.round(values)).all())):
        return False
    return 2 <= series.nunique() <= min(_CLASSES, len(series) // 2)


def _balanced(values: np.ndarray, s: Statistics) -> bool:
    if not s.whole or s.holes or s.low not in (0, 1) or not 1 <= s.high - s.low < min(_CLASSES, len(values) / 5):
        return False
    counts = np.bincount((values - s.low).astype(int))
    return bool(counts.min() > counts.mean() / 3 and counts.max() < counts.mean() * 3)
