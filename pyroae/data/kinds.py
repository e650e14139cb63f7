"""Inferring the kind of a column: numbers, counts or categories; or an index, dates or text, which are left out."""

import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..checks import InputError
from . import dates
from .schema import Column
from .statistics import Statistics, statistics
from .wide import CLASS, PIXELS, class_column, joint_kind

_FIRST = 1000  # rows checked for the content of a column
_MANY = 20  # least number of rows for which consecutive numbers are an index
_FEW = 10  # at most so many distinct integers are categories
_CATEGORIES = 100  # at most so many distinct texts are categories
_UNNAMED = re.compile(r"Unnamed: \d+(_level_\d+)?|__index_level_\d+__|level_\d+|row_?names?|index|", re.I)
_IDENTIFIER = re.compile(r"(.*[_ .])?(id|identifier|idx|index|uuid|guid|key|obs|observation|rownum)|no|nr|row", re.I)
_SIGNED = "[%$€£¥]|^[-+]?\\d{1,3}(?:[,'\u00a0\u202f]\\d{3})+"  # the characters themselves: not every engine knows \\u
_SIGNS = re.compile(r"^[$€£¥]\s*|\s*[%$€£¥]$|(?<=\d)['\u00a0\u202f](?=\d{3})")  # signs that are not part of a number
_GROUPED = r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?"
_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal")  # content of a column of objects, as named by pandas
_TEXT = ("string", "empty")
_SENTINELS = (-1, -9, -99, -999, -9999, -99999, 99, 999, 9999, 99999)


@dataclass
class Kinds:
    """The columns of x, the reasons why others are left out, remarks on columns, and the column of labels."""

    columns: list[Column]
    left_out: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    label: str | None = None


@dataclass(frozen=True)
class _Joint:
    """One kind for many columns; for grey levels also the value of white."""

    kind: str
    names: frozenset[str]
    white: float


def infer(frame: pd.DataFrame, asked: dict[str, str], kept: bool = False, labelled: bool = True, alike: bool = False) -> Kinds:
    """The kinds of a table's columns.

    Args:
        frame: the table, without its labels.
        asked: kinds by column that are given.
        kept: whether all columns were selected by name; then none is left out as an index, identifier or constant.
        labelled: whether the labels are known; otherwise a column of classes next to pixels or genes becomes the labels.
        alike: whether all columns of numbers have the same kind, such as genes: counts or real numbers.
    """
    kinds = Kinds([])
    series = dict(frame.items())
    numbers = {name: values for name, column in series.items() if (values := _as_numbers(column, asked.get(name))) is not None}
    stats = statistics(numbers)
    position = {name: i for i, name in enumerate(numbers)}
    joint, label = (_genes(numbers, stats, set(asked)), None) if alike else _together(frame, numbers, stats, set(asked))
    kinds.label = None if labelled or kept or label in asked else label
    for place, (name, column) in enumerate(series.items()):
        if name == kinds.label:
            continue
        s = stats.of(position[name]) if name in numbers else None
        shared = joint if joint is not None and name in joint.names else None
        if name in asked or (kept and dates.time_of(column)):
            column_or_reason = _as_asked(column, name, asked.get(name, "real"), s)
        elif s is not None:
            column_or_reason = _number_column(column, name, numbers[name], s, place, shared, kept)
        else:
            column_or_reason = _text_column(column, name, kept)
        if isinstance(column_or_reason, str):
            kinds.left_out[str(name)] = column_or_reason
            continue
        kinds.columns.append(column_or_reason)
        if s is not None and shared is None and (remark := _remark(name, numbers[name], s)):
            kinds.remarks[name] = remark
        elif CLASS.fullmatch(str(name)) and column_or_reason.values is not None:
            kinds.remarks[name] = f"if these are classes, labels={name!r} keeps them out of x"
    return kinds


def _genes(numbers: dict[str, np.ndarray], stats: Statistics, asked: set[str]) -> _Joint:
    """One kind for all columns of numbers whose kind is not given."""
    some = stats.of([i for i, name in enumerate(numbers) if name not in asked])
    counts = bool(some.whole.all()) and bool((some.low >= 0).all())
    return _Joint("count" if counts else "real", frozenset(numbers), 1.0)


def _together(frame: pd.DataFrame, numbers: dict[str, np.ndarray], stats: Statistics, asked: set[str]) -> tuple[_Joint | None, str | None]:
    """The common kind of many columns, if they have one, and the column of classes next to them."""
    if len(numbers) < PIXELS:
        return None, None
    apart = asked | {name for place, name in enumerate(frame) if name in numbers and _is_index(name, numbers[name], place)}
    label = class_column(frame, numbers, stats)
    for beside in dict.fromkeys((label, None)):  # a column that looks like classes may be one like the others
        places = [i for i, name in enumerate(numbers) if name not in apart and name != beside]
        names, some = list(numbers), stats.of(places)
        kind = joint_kind(some, [numbers[names[i]] for i in places])
        if kind == "real":
            places = [i for i in places if not stats.whole[i]]
        if kind is not None:
            return _Joint(kind, frozenset(names[i] for i in places), float(some.high.max())), beside
    return None, None


def _is_index(name: str, values: np.ndarray, place: int) -> bool:
    """Whether a column next to many others is an index of the rows."""
    named = bool(_IDENTIFIER.fullmatch(str(name)) or (place == 0 and _UNNAMED.fullmatch(str(name))))
    if not named and place:
        return False
    counts = len(values) >= _MANY and bool((np.diff(values) == 1).all())
    return (named or counts) and len(np.unique(values)) == len(values)


def numeric(series: pd.Series) -> np.ndarray | None:
    """A column as float64, NaN where missing, also for numbers written as text, with percent or currency signs; otherwise ``None``."""
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "biuf":
        return series.to_numpy().astype(np.float64, copy=False)
    if pd.api.types.is_bool_dtype(series.dtype) or pd.api.types.is_numeric_dtype(series.dtype):
        if pd.api.types.is_complex_dtype(series.dtype):
            return None
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    content = pd.api.types.infer_dtype(series, skipna=True)
    if content in _NUMBERS:  # as objects, such as Decimal
        return series.astype(object).where(series.notna(), np.nan).astype(np.float64).to_numpy()
    if content not in _TEXT:
        return None
    text = series.astype(object).where(series.notna(), None)
    bare = text.map(lambda value: _SIGNS.sub("", str(value).strip()), na_action="ignore")
    commas = bare[bare.astype(str).str.contains(",")]
    if len(commas):  # between thousands, or before decimals
        grouped = commas.str.fullmatch(_GROUPED).all()
        bare = bare.str.replace(",", "") if grouped else bare.str.replace(".", "").str.replace(",", ".")
    numbers = pd.to_numeric(bare, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return None if bool((np.isnan(numbers) & series.notna().to_numpy() & (bare != "nan").to_numpy()).any()) else numbers


def _as_numbers(series: pd.Series, asked: str | None) -> np.ndarray | None:
    """The numbers of a column if it has numbers or its kind is given as such; otherwise text that looks like numbers is text."""
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "biuf":
        return numeric(series)
    if isinstance(series.dtype, pd.CategoricalDtype):
        return None
    declared = pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype)
    declared = declared or pd.api.types.infer_dtype(series, skipna=True) in _NUMBERS
    signed = not declared and _are_signed(series.iloc[:_FIRST]) and _are_signed(series)
    return numeric(series) if declared or signed or (asked not in (None, "category", "binary")) else None


def _are_signed(series: pd.Series) -> bool:
    """Whether all values have percent or currency signs, or commas between thousands."""
    return pd.api.types.infer_dtype(series, skipna=True) in _TEXT and bool(
        series.dropna().astype(str).str.contains(_SIGNED, regex=True).all()
    )


def _number_column(
    series: pd.Series, name: str, values: np.ndarray, s: Statistics, place: int, joint: _Joint | None, kept: bool
) -> Column | str:
    missing = bool(s.holes)
    if joint is not None and joint.kind == "unit":
        return Column(name, "unit", scale=joint.white)
    if s.distinct == 0 and not bool(np.isinf(values).any()):
        return "empty"
    if not kept and (reason := _not_data(name, values, s, place, wide=joint is not None)):
        return reason
    if joint is not None:
        return Column(name, joint.kind, shift=_shift(values, s) if joint.kind == "real" else 0.0, missing=missing)
    if pd.api.types.is_bool_dtype(series.dtype):
        return Column(name, "binary", values=[False, True], missing=missing)
    if s.whole and s.distinct <= _FEW and s.spread > 0:
        distinct = np.unique(values[~np.isnan(values)])
        if len(distinct) <= _FEW and (list(distinct) == [0, 1] or len(values) >= 5 * len(distinct)):
            names = [int(value) for value in distinct]
            return Column(name, "binary" if len(names) == 2 else "category", values=names, missing=missing)
    return Column(name, kind := _kind(s), shift=_shift(values, s) if kind == "real" else 0.0, missing=missing)


def _kind(s: Statistics) -> str:
    if s.whole and 0 <= s.low < _FEW and s.high < 1e5 and s.skew > 0.7:
        return "count"
    return "positive" if s.low > 0 and s.skew > 1.0 and abs(s.log_skew) < 0.7 * s.skew else "real"


def _shift(values: np.ndarray, s: Statistics) -> float:
    """A number near the values if float32 could not resolve their differences; otherwise 0."""
    largest = max(abs(s.low), abs(s.high))
    return float(np.round(np.nanmean(values))) if largest * 2.0**-24 > 1e-4 * s.spread > 0 else 0.0


def _not_data(name: str, values: np.ndarray, s: Statistics, place: int, wide: bool) -> str | None:
    """The reason to leave out a column of numbers: an index, an identifier, dates, a constant; ``None`` to keep it."""
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
    if dates.are_dates_as_numbers(values):
        return "dates"
    return None


def _counts_rows(values: np.ndarray, s: Statistics) -> bool:
    """Whether values are consecutive numbers in any order, without repetition, and not years."""
    years = 1500 <= s.low and s.high <= 2200
    return len(values) >= _MANY and s.high - s.low + 1 == len(values) and not years and len(np.unique(values)) == len(values)


def _text_column(series: pd.Series, name: str, kept: bool) -> Column | str:
    present = series.dropna()
    missing = len(present) < len(series)
    if not len(present):
        return "empty"
    if dates.time_of(series):
        return "dates"
    if isinstance(series.dtype, pd.CategoricalDtype):
        used = set(present)
        return _category(name, [value for value in series.dtype.categories if value in used], missing, len(present), kept)
    content = pd.api.types.infer_dtype(present, skipna=True)
    mixed = content in ("mixed", "mixed-integer") and bool(present.map(lambda value: isinstance(value, str | float | int)).all())
    if content not in ("string", "boolean", *_NUMBERS) and not mixed:
        return f"{content}: neither numbers nor text"
    values = present.map(str) if mixed else present.astype(object)
    distinct = values.unique()
    if len(distinct) == 1 and not kept:
        return f"constant: {distinct[0]}"
    if _UNNAMED.fullmatch(str(name)) and len(distinct) == len(series) and not kept:
        return "index: row names"
    return _category(name, sorted(distinct, key=_by_number), missing, len(present), kept)


def _category(name: str, values: list, missing: bool, rows: int, kept: bool) -> Column | str:
    values = _plain(values)
    if len(values) == 1 and not kept:
        return f"constant: {values[0]}"
    if not kept and len(values) > 2 and (len(values) > _CATEGORIES or len(values) > max(0.2 * rows, min(_FEW, 0.5 * rows))):
        return f"text: {len(values):,} different values in {rows:,} rows{_numbers_but_for(values)}"
    return Column(name, "binary" if len(values) == 2 else "category", values=values, missing=missing)


def _plain(values: list) -> list:
    """Categories as numbers and text of Python; others, such as intervals, as text."""
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    return [value if isinstance(value, str | float | int) else str(value) for value in values]


def _numbers_but_for(values: list) -> str:
    """The few values that are not numbers in a column of text, as a hint."""
    words = [str(value) for value in values[-_FIRST:] if _by_number(value)[0]]  # sorted behind numbers
    if not 0 < len(words) <= min(3, len(values) // 2):
        return ""
    na, option = (repr(words[0]), words[0]) if len(words) == 1 else (words, words)
    return f"; numbers but for {', '.join(map(repr, words))}: if they stand for missing values, use na={na} (--na {option!r})"


def _by_number(value) -> tuple:
    """Categories in order: numbers by size, also in text, other text alphabetically."""
    try:
        return 0, float(value), ""
    except (TypeError, ValueError):
        return 1, 0.0, str(value)


def _as_asked(series: pd.Series, name: str, kind: str, s: Statistics | None) -> Column:
    """A column of a given kind; dates as real numbers are days."""
    present = series.dropna()
    if not len(present):
        raise InputError(f"data: column {name!r} was given as {kind!r}, but is empty; drop it")
    if kind in ("category", "binary"):
        if not all(map(pd.api.types.is_hashable, present)):
            raise InputError(f"data: column {name!r} was given as {kind!r}, but holds {present.iloc[0]!r}; drop it")
        values = _plain(sorted(present.unique().tolist(), key=_by_number))
        values = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
        if kind == "binary" and len(values) != 2:
            raise InputError(f"data: column {name!r} was given as binary, but has {len(values)} different values; use 'category'")
        return Column(name, kind, values=values, missing=bool(series.isna().any()))
    if kind == "real" and (time := dates.time_of(series)):
        return Column(name, kind, shift=float(np.round(dates.days(present, time).mean())), missing=len(present) < len(series), time=time)
    if s is None:
        raise InputError(f"data: column {name!r} was given as {kind!r}, but holds {present.iloc[0]!r}; use 'category', or drop it")
    valid = {"positive": s.low > 0, "count": s.low >= 0 and s.whole, "unit": s.low >= 0 and s.high <= 1}.get(kind, True)
    if not valid:
        raise InputError(f"data: column {name!r} was given as {kind!r}, but its values go from {s.low:g} to {s.high:g}; use 'real'")
    return Column(name, kind, shift=_shift(numeric(series), s) if kind == "real" else 0.0, missing=bool(s.holes))


def _remark(name: str, values: np.ndarray, s: Statistics) -> str | None:
    """A remark about an extreme value that may stand for missing ones."""
    for sentinel in _SENTINELS:
        if sentinel not in (s.low, s.high) or abs(sentinel) < 9 and s.distinct > 2:
            continue
        others = values[~np.isnan(values) & (values != sentinel)]
        rows = int((values == sentinel).sum())
        if not len(others) or rows < 2:
            continue
        gap = min(abs(others.min() - sentinel), abs(others.max() - sentinel))
        if gap > 2 * max(np.ptp(others), 1.0) or (sentinel < -8 and others.min() >= 0):
            return f"{sentinel} in {rows} rows: if it stands for a missing value, use na={sentinel} (--na {sentinel})"
    return None
