"""What a column of a table is: numbers, counts, categories; or an index, dates or text, which are left out."""

import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from . import dates
from .schema import Column
from .statistics import Statistics, statistics
from .wide import CLASS, PIXELS, class_column, joint_kind

_FIRST = 1000  # rows that can tell that a column is something else
_MANY = 20  # rows whose numbers are consecutive by no accident
_FEW = 10  # distinct whole numbers that are categories
_CATEGORIES = 100  # distinct texts that are categories at most
_UNNAMED = re.compile(r"Unnamed: \d+(_level_\d+)?|__index_level_\d+__|level_\d+|row_?names?|index|", re.I)
_IDENTIFIER = re.compile(r"(.*[_ .])?(id|identifier|idx|index|uuid|guid|key|obs|observation|rownum)|no|nr|row", re.I)
_SIGNED = r"[%$€£¥]|^[-+]?\d{1,3}(?:[,'\u00a0\u202f]\d{3})+"
_SIGNS = re.compile(r"^[$€£¥]\s*|\s*[%$€£¥]$|(?<=\d)['\u00a0\u202f](?=\d{3})")  # what is not part of a number's value
_GROUPED = r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?"
_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal")  # what pandas calls the content of a column of objects
_TEXT = ("string", "empty")
_SENTINELS = (-1, -9, -99, -999, -9999, -99999, 99, 999, 9999, 99999)


@dataclass
class Kinds:
    """The columns that x is made of, why others are left out, remarks on single columns, and a column taken for labels."""

    columns: list[Column]
    left_out: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    label: str | None = None


@dataclass(frozen=True)
class _Joint:
    """One kind for many columns; of grey levels also the value of white."""

    kind: str
    names: frozenset[str]
    white: float


def infer(frame: pd.DataFrame, asked: dict[str, str], kept: bool = False, labelled: bool = True, alike: bool = False) -> Kinds:
    """The kinds of a table's columns.

    Args:
        frame: the table, without its labels.
        asked: kinds by column that are not to be inferred.
        kept: whether every column was asked for by name: then none is left out as an index, an identifier or a constant.
        labelled: whether labels are known; otherwise a column of classes beside pixels or genes is taken for them.
        alike: whether all columns of numbers are of one kind, such as genes: counts, or real numbers.
    """
    found = Kinds([])
    series = dict(frame.items())
    numbers = {name: values for name, each in series.items() if (values := _as_numbers(each, asked.get(name))) is not None}
    stats = statistics(numbers)
    position = {name: i for i, name in enumerate(numbers)}
    joint, label = (_genes(numbers, stats, set(asked)), None) if alike else _together(frame, numbers, stats, set(asked))
    found.label = None if labelled or kept or label in asked else label
    for place, (name, column) in enumerate(series.items()):
        if name == found.label:
            continue
        s = stats.of(position[name]) if name in numbers else None
        shared = joint if joint is not None and name in joint.names else None
        if name in asked or (kept and dates.time_of(column)):
            made = _as_asked(column, name, asked.get(name, "real"), s)
        elif s is not None:
            made = _number_column(column, name, numbers[name], s, place, shared, kept)
        else:
            made = _text_column(column, name, kept)
        if isinstance(made, str):
            found.left_out[str(name)] = made
            continue
        found.columns.append(made)
        if s is not None and shared is None and (remark := _remark(name, numbers[name], s)):
            found.remarks[name] = remark
        elif CLASS.fullmatch(str(name)) and made.values is not None:
            found.remarks[name] = f"if these are classes, labels={name!r} keeps them out of x"
    return found


def _genes(numbers: dict[str, np.ndarray], stats: Statistics, asked: set[str]) -> _Joint:
    """One kind for all columns of numbers but those whose kind was asked for."""
    some = stats.of([i for i, name in enumerate(numbers) if name not in asked])
    counts = bool(some.whole.all()) and bool((some.low >= 0).all())
    return _Joint("count" if counts else "real", frozenset(numbers), 1.0)


def _together(frame: pd.DataFrame, numbers: dict[str, np.ndarray], stats: Statistics, asked: set[str]) -> tuple[_Joint | None, str | None]:
    """What many columns are together, where they are one kind, and the column of classes beside them."""
    if len(numbers) < PIXELS:
        return None, None
    apart = asked | {name for place, name in enumerate(frame) if name in numbers and _is_index(name, numbers[name], place)}
    label = class_column(frame, numbers, stats)
    for beside in dict.fromkeys((label, None)):  # what looks like classes may be a column like the others
        places = [i for i, name in enumerate(numbers) if name not in apart and name != beside]
        names, some = list(numbers), stats.of(places)
        kind = joint_kind(some, [numbers[names[i]] for i in places])
        if kind == "real":
            places = [i for i in places if not stats.whole[i]]
        if kind is not None:
            return _Joint(kind, frozenset(names[i] for i in places), float(some.high.max())), beside
    return None, None


def _is_index(name: str, values: np.ndarray, place: int) -> bool:
    """Whether a column beside many others numbers the rows."""
    named = bool(_IDENTIFIER.fullmatch(str(name)) or (place == 0 and _UNNAMED.fullmatch(str(name))))
    if not named and place:
        return False
    counts = len(values) >= _MANY and bool((np.diff(values) == 1).all())
    return (named or counts) and len(np.unique(values)) == len(values)


def numeric(series: pd.Series) -> np.ndarray | None:
    """A column's numbers in float64, NaN where missing; also of numbers written as text, with percent or currency signs. Else ``None``."""
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
    """Numbers of a column that holds numbers, or of one said to; text that looks like numbers stays text in other cases."""
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "biuf":
        return numeric(series)
    if isinstance(series.dtype, pd.CategoricalDtype):
        return None
    declared = pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype)
    declared = declared or pd.api.types.infer_dtype(series, skipna=True) in _NUMBERS
    signed = not declared and _are_signed(series.iloc[:_FIRST]) and _are_signed(series)
    return numeric(series) if declared or signed or (asked not in (None, "category", "binary")) else None


def _are_signed(series: pd.Series) -> bool:
    """Whether all is text with percent or currency signs, or commas between thousands."""
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
    """A number near the values, where float32 would lose what tells them apart; otherwise 0."""
    largest = max(abs(s.low), abs(s.high))
    return float(np.round(np.nanmean(values))) if largest * 2.0**-24 > 1e-4 * s.spread > 0 else 0.0


def _not_data(name: str, values: np.ndarray, s: Statistics, place: int, wide: bool) -> str | None:
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
    if dates.are_dates_as_numbers(values):
        return "dates"
    return None


def _counts_rows(values: np.ndarray, s: Statistics) -> bool:
    """Whether values are consecutive numbers in any order, each once, and no years."""
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
    """Categories as Python's numbers and text; others, such as intervals, as text."""
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    return [value if isinstance(value, str | float | int) else str(value) for value in values]


def _numbers_but_for(values: list) -> str:
    """What keeps a column of text from being one of numbers, where that is little."""
    words = [str(value) for value in values[-_FIRST:] if _by_number(value)[0]]  # which are sorted behind numbers
    if not 0 < len(words) <= min(3, len(values) // 2):
        return ""
    na, option = (repr(words[0]), words[0]) if len(words) == 1 else (words, words)
    return f"; numbers but for {', '.join(map(repr, words))}: if missing values are meant, say na={na} (--na {option!r})"


def _by_number(value) -> tuple:
    """Categories in order: numbers by size, text by letters; ``2`` before ``10`` in text, too."""
    try:
        return 0, float(value), ""
    except (TypeError, ValueError):
        return 1, 0.0, str(value)


def _as_asked(series: pd.Series, name: str, kind: str, s: Statistics | None) -> Column:
    """A column of the kind that was asked for; dates as real numbers are days."""
    present = series.dropna()
    if not len(present):
        raise ValueError(f"data: column {name!r} was said to be {kind!r}, but is empty; drop it")
    if kind in ("category", "binary"):
        if not all(map(pd.api.types.is_hashable, present)):
            raise ValueError(f"data: column {name!r} was said to be {kind!r}, but holds {present.iloc[0]!r}; drop it")
        values = _plain(sorted(present.unique().tolist(), key=_by_number))
        values = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
        if kind == "binary" and len(values) != 2:
            raise ValueError(f"data: column {name!r} was said to be binary, but has {len(values)} different values; say 'category'")
        return Column(name, kind, values=values, missing=bool(series.isna().any()))
    if kind == "real" and (time := dates.time_of(series)):
        return Column(name, kind, shift=float(np.round(dates.days(present, time).mean())), missing=len(present) < len(series), time=time)
    if s is None:
        raise ValueError(f"data: column {name!r} was said to be {kind!r}, but holds {present.iloc[0]!r}; say 'category', or drop it")
    sound = {"positive": s.low > 0, "count": s.low >= 0 and s.whole, "unit": s.low >= 0 and s.high <= 1}.get(kind, True)
    if not sound:
        raise ValueError(f"data: column {name!r} was said to be {kind!r}, but its values go from {s.low:g} to {s.high:g}; say 'real'")
    return Column(name, kind, shift=_shift(numeric(series), s) if kind == "real" else 0.0, missing=bool(s.holes))


def _remark(name: str, values: np.ndarray, s: Statistics) -> str | None:
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
