"""What a column of a table is: numbers, counts, categories; or an index, dates or text, which are left out."""

import re
import warnings
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from .schema import Column

_SAMPLE = 20_000  # rows that distinct values and skewness are estimated from
_WIDE = 100  # columns of numbers from which on all are taken for one kind: pixels, genes
_FIRST = 1000  # rows that can tell that a column is something else
_BLOCK = 5_000_000  # numbers looked at at once
_MANY = 20  # rows whose numbers are consecutive by no accident
_FEW = 10  # distinct whole numbers that are categories
_CATEGORIES = 100  # distinct texts that are categories at most
_PIXELS = 64  # columns of whole numbers up to 255 that are grey levels: many columns reach the same maximum
_UNNAMED = re.compile(r"Unnamed: \d+(_level_\d+)?|__index_level_\d+__|level_\d+|row_?names?|index|", re.I)
_IDENTIFIER = re.compile(r"(.*[_ .])?(id|identifier|idx|index|uuid|guid|key|obs|observation|rownum)|no|nr|row", re.I)
_SIGNED = r"[%$€£¥]|^[-+]?\d{1,3}(?:,\d{3})+"
_MONTH = re.compile(r"\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b", re.I)
_SENTINELS = (-1, -9, -99, -999, -9999, -99999, 99, 999, 9999, 99999)
_CLASS = re.compile(r"label|labels|class|target|species|y", re.I)


@dataclass
class Kinds:
    """The columns that x is made of, why others are left out, and remarks on single columns."""

    columns: list[Column]
    left_out: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)


@dataclass
class _Numbers:
    """Statistics of the columns of numbers, one entry for each."""

    low: np.ndarray
    high: np.ndarray
    holes: np.ndarray
    whole: np.ndarray
    distinct: np.ndarray
    skew: np.ndarray
    log_skew: np.ndarray
    spread: np.ndarray

    def of(self, i: int) -> "_Numbers":
        return _Numbers(**{name: values[i] for name, values in vars(self).items()})


def infer(frame: pd.DataFrame, asked: dict[str, str], kept: bool = False) -> Kinds:
    """The kinds of a table's columns.

    Args:
        frame: the table, without its labels.
        asked: kinds by column that are not to be inferred.
        kept: whether every column was asked for by name: then none is left out as an index, an identifier or a constant.
    """
    found = Kinds([])
    whole = dict(frame.items())
    numbers = {name: values for name, series in whole.items() if (values := _as_numbers(series, asked.get(name))) is not None}
    stats = _statistics(numbers)
    position = {name: i for i, name in enumerate(numbers)}
    joint = _joint(stats) if len(numbers) == frame.shape[1] and not asked else None
    white = float(stats.high.max(initial=1.0))
    for place, (name, series) in enumerate(whole.items()):
        if name in asked:
            column = _as_asked(series, name, asked[name], stats.of(position[name]) if name in numbers else None)
        elif name in numbers:
            column = _number_column(series, name, numbers[name], stats.of(position[name]), place, joint, kept, white)
        else:
            column = _text_column(series, name)
        if isinstance(column, str):
            found.left_out[str(name)] = column
            continue
        found.columns.append(column)
        if name in numbers and joint is None and (remark := _remark(name, numbers[name], stats.of(position[name]))):
            found.remarks[name] = remark
        elif _CLASS.fullmatch(str(name)) and column.values is not None:
            found.remarks[name] = f"if these are classes, labels={name!r} keeps them out of x"
    return found


def numeric(series: pd.Series) -> np.ndarray | None:
    """A column's numbers in float64, NaN where missing; also of numbers written as text, with percent or currency signs. Else ``None``."""
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "biuf":
        return series.to_numpy().astype(np.float64, copy=False)
    if pd.api.types.is_bool_dtype(series.dtype) or pd.api.types.is_numeric_dtype(series.dtype):
        if pd.api.types.is_complex_dtype(series.dtype):
            return None
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    if not _is_text(series):
        return None
    text = series.astype(object).where(series.notna(), None)
    bare = text.map(lambda value: re.sub(r"^[$€£¥]\s*|\s*(%|[$€£¥])$", "", str(value).strip()), na_action="ignore")
    bare = bare.map(
        lambda value: value.replace(",", "") if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", value) else value, na_action="ignore"
    )
    numbers = pd.to_numeric(bare, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return None if bool((np.isnan(numbers) & series.notna().to_numpy() & (bare != "nan").to_numpy()).any()) else numbers


def _is_text(series: pd.Series) -> bool:
    """Whether all that is there is text."""
    return pd.api.types.infer_dtype(series, skipna=True) in ("string", "empty")


def _as_numbers(series: pd.Series, asked: str | None) -> np.ndarray | None:
    """Numbers of a column that holds numbers, or of one said to; text that looks like numbers stays text in other cases."""
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "biuf":
        return numeric(series)
    if isinstance(series.dtype, pd.CategoricalDtype):
        return None
    declared = pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype)
    signed = not declared and _are_signed(series.iloc[:_FIRST]) and _are_signed(series)
    return numeric(series) if declared or signed or (asked not in (None, "category", "binary")) else None


def _are_signed(series: pd.Series) -> bool:
    """Whether all is text with percent or currency signs, or commas between thousands."""
    return _is_text(series) and bool(series.dropna().astype(str).str.contains(_SIGNED, regex=True).all())


def _statistics(numbers: dict[str, np.ndarray]) -> _Numbers:
    columns = list(numbers.values())
    if not columns:
        return _Numbers(*[np.zeros(0)] * 8)
    at_once = max(1, _BLOCK // max(1, len(columns[0])))
    blocks = [_block(np.stack(columns[start : start + at_once])) for start in range(0, len(columns), at_once)]
    return _Numbers(*(np.concatenate(parts) for parts in zip(*blocks)))


def _block(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """The statistics of some columns ``(columns, rows)``; of infinite and missing values none."""
    present = np.isfinite(x)
    every = present.any(1)
    low = np.where(every, np.min(x, 1, where=present, initial=np.inf), 0.0)
    high = np.where(every, np.max(x, 1, where=present, initial=-np.inf), 0.0)
    holes = np.isnan(x)
    with np.errstate(invalid="ignore"):
        whole = every & ((x == np.floor(x)) | holes).all(1) & (present | holes).all(1)
    sample = np.sort(np.where(present, x, np.nan)[:, :: max(1, x.shape[1] // _SAMPLE)], 1)
    distinct = ((sample[:, 1:] != sample[:, :-1]) & ~np.isnan(sample[:, 1:])).sum(1) + ~np.isnan(sample[:, 0])
    skew, spread = _moments(sample)
    positive = every & (low > 0)
    log_skew = np.where(positive, _moments(np.log(np.where(positive[:, None], sample, 1.0)))[0], np.inf)
    return low, high, holes.sum(1), whole, distinct, skew, log_skew, spread


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Skewness and standard deviation of columns ``(columns, rows)``, of any numbers that float64 can hold; NaN is passed over."""
    present = ~np.isnan(x)
    largest = np.maximum(np.where(present, np.abs(x), 0.0).max(1, keepdims=True), 1e-300)
    n, x = np.maximum(present.sum(1, keepdims=True), 1), np.where(present, x / largest, 0.0)
    centred = np.where(present, x - x.sum(1, keepdims=True) / n, 0.0)
    spread = np.sqrt((centred**2).sum(1) / n[:, 0])
    skew = np.where(spread > 1e-12, (centred**3).sum(1) / n[:, 0] / np.maximum(spread, 1e-12) ** 3, 0.0)
    return skew, spread * np.minimum(largest[:, 0], 1e300)


def _joint(stats: _Numbers) -> str | None:
    """One kind for all columns: of grey levels, and of tables as wide as genes."""
    wide = len(stats.whole)
    if wide < _PIXELS or not len(stats.low):
        return None
    whole = bool(stats.whole.all()) and stats.low.min() >= 0
    saturated = float((stats.high == stats.high.max()).mean())
    if whole and 7 <= stats.high.max() <= 255 and saturated > 0.3 and not stats.holes.any():
        return "unit"
    if wide >= _WIDE and whole and stats.high.max() > 1:
        return "count"
    return "real" if wide >= _WIDE and not bool(stats.whole.mean() > 0.5) else None


def _number_column(
    series: pd.Series, name: str, values: np.ndarray, s: _Numbers, place: int, joint: str | None, kept: bool, white: float
) -> Column | str:
    missing = bool(s.holes)
    if joint == "unit":
        return Column(name, "unit", scale=white)
    if s.distinct == 0 and not bool(np.isinf(values).any()):
        return "empty"
    if not kept and (reason := _not_data(name, values, s, place, wide=joint is not None)):
        return reason
    if joint is not None:
        return Column(name, joint, shift=_shift(values, s) if joint == "real" else 0.0, missing=missing)
    if pd.api.types.is_bool_dtype(series.dtype):
        return Column(name, "binary", values=[False, True], missing=missing)
    if s.whole and s.distinct <= _FEW and s.spread > 0:
        distinct = np.unique(values[~np.isnan(values)])
        if len(distinct) <= _FEW and (list(distinct) == [0, 1] or len(values) >= 5 * len(distinct)):
            names = [int(value) for value in distinct]
            return Column(name, "binary" if len(names) == 2 else "category", values=names, missing=missing)
    return Column(name, kind := _kind(s), shift=_shift(values, s) if kind == "real" else 0.0, missing=missing)


def _kind(s: _Numbers) -> str:
    if s.whole and 0 <= s.low < _FEW and s.high < 1e5 and s.skew > 0.7:
        return "count"
    return "positive" if s.low > 0 and s.skew > 1.0 and abs(s.log_skew) < 0.7 * s.skew else "real"


def _shift(values: np.ndarray, s: _Numbers) -> float:
    """A number near the values, where float32 would lose what tells them apart; otherwise 0."""
    largest = max(abs(s.low), abs(s.high))
    return float(np.round(np.nanmean(values))) if largest * 2.0**-24 > 1e-4 * s.spread > 0 else 0.0


def _not_data(name: str, values: np.ndarray, s: _Numbers, place: int, wide: bool) -> str | None:
    """Why a column of numbers is left out: an index, an identifier, dates, one value."""
    if s.low == s.high:
        return f"constant: {values[~np.isnan(values)][0]:g}"
    if wide or not s.whole or s.holes:
        return None
    if s.low in (0, 1) and len(values) > 2 and bool((np.diff(values) == 1).all()):
        return "index: counts the rows"
    if _UNNAMED.fullmatch(str(name)) and place == 0:
        return "index"
    if _IDENTIFIER.fullmatch(str(name)) and len(np.unique(values)) == len(values):
        return "identifier: another number in every row"
    if _counts_rows(values, s):
        return "index: numbers the rows"
    if 10000101 <= s.low and s.high <= 29991231 and len(values) > 2 and _are_dates(pd.Series(values.astype(int)).astype(str), "%Y%m%d"):
        return "dates"
    return None


def _counts_rows(values: np.ndarray, s: _Numbers) -> bool:
    """Whether values are consecutive numbers in any order, each once, and no years."""
    years = 1500 <= s.low and s.high <= 2200
    return len(values) >= _MANY and s.high - s.low + 1 == len(values) and not years and len(np.unique(values)) == len(values)


def _text_column(series: pd.Series, name: str) -> Column | str:
    present = series.dropna()
    missing = len(present) < len(series)
    if not len(present):
        return "empty"
    if pd.api.types.is_datetime64_any_dtype(series.dtype) or isinstance(series.dtype, (pd.PeriodDtype,)) or series.dtype.kind in "mM":
        return "dates"
    if isinstance(series.dtype, pd.CategoricalDtype):
        used = set(present)
        return _category(name, [value for value in series.dtype.categories if value in used], missing, len(present))
    kind = pd.api.types.infer_dtype(present, skipna=True)
    if kind in ("date", "datetime", "datetime64", "timedelta", "period", "time"):
        return "dates"
    if kind not in ("string", "boolean", "integer", "floating", "decimal", "mixed-integer", "categorical"):
        return f"{kind}: neither numbers nor text"
    values = present.astype(object)
    if kind == "mixed-integer":
        values = values.map(str)
    distinct = values.unique()
    if len(distinct) == 1:
        return f"constant: {distinct[0]}"
    if kind == "string" and _are_dates(values.iloc[:: max(1, len(values) // 200)]):
        return "dates"
    if _UNNAMED.fullmatch(str(name)) and len(distinct) == len(series):
        return "index: row names"
    return _category(name, sorted(distinct, key=_by_number), missing, len(present))


def _category(name: str, values: list, missing: bool, rows: int) -> Column | str:
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    if len(values) == 1:
        return f"constant: {values[0]}"
    if len(values) > 2 and (len(values) > _CATEGORIES or len(values) > max(0.2 * rows, min(_FEW, 0.5 * rows))):
        return f"text: {len(values):,} different values in {rows:,} rows"
    return Column(name, "binary" if len(values) == 2 else "category", values=values, missing=missing)


def _by_number(value) -> tuple:
    """Categories in order: numbers by size, text by letters; ``2`` before ``10`` in text, too."""
    try:
        return 0, float(value), ""
    except (TypeError, ValueError):
        return 1, 0.0, str(value)


def _are_dates(text: pd.Series, pattern: str = "mixed") -> bool:
    text = text.astype(str)
    if pattern == "mixed" and not bool(
        (text.str.contains(r"\d") & (text.str.contains(r"\d[-/:.]\d|^\d{4}Q\d$") | text.str.contains(_MONTH))).all()
    ):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(pd.to_datetime(text, errors="coerce", format=pattern).notna().all())


def _as_asked(series: pd.Series, name: str, kind: str, s: _Numbers | None) -> Column:
    """A column of the kind that was asked for."""
    if kind in ("category", "binary"):
        values = [
            value.item() if isinstance(value, np.generic) else value for value in sorted(series.dropna().unique().tolist(), key=_by_number)
        ]
        values = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
        if kind == "binary" and len(values) != 2:
            raise ValueError(f"data: column {name!r} was said to be binary, but has {len(values)} different values; say 'category'")
        return Column(name, kind, values=values, missing=bool(series.isna().any()))
    if s is None:
        raise ValueError(
            f"data: column {name!r} was said to be {kind!r}, but holds {series.dropna().iloc[0]!r}; say 'category', or drop it"
        )
    sound = {"positive": s.low > 0, "count": s.low >= 0 and s.whole, "unit": s.low >= 0 and s.high <= 1}.get(kind, True)
    if not sound:
        raise ValueError(f"data: column {name!r} was said to be {kind!r}, but its values go from {s.low:g} to {s.high:g}; say 'real'")
    return Column(name, kind, shift=_shift(numeric(series), s) if kind == "real" else 0.0, missing=bool(s.holes))


def _remark(name: str, values: np.ndarray, s: _Numbers) -> str | None:
    """A value at one end, far from all others, that may stand for a missing one."""
    for sentinel in _SENTINELS:
        if sentinel not in (s.low, s.high) or abs(sentinel) < 9 and s.distinct > 2:
            continue
        others = values[~np.isnan(values) & (values != sentinel)]
        rows = int((values == sentinel).sum())
        if not len(others) or rows < 2:
            continue
        gap = min(abs(others.min() - sentinel), abs(others.max() - sentinel))
        if gap > 2 * max(np.ptp(others), 1.0) or (sentinel < -8 and others.min() >= 0):
            return f"{sentinel} in {rows} rows: if it stands for a missing value, say na={sentinel} (--na {sentinel})"
    return None
