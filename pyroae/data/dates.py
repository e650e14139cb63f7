"""Dates and durations as numbers of days: recognising, reading and writing them."""

import datetime
import re
import warnings
from typing import Literal, get_args

import numpy as np
import pandas as pd

Time = Literal["date", "day first", "duration"]
TIMES: tuple[str, ...] = get_args(Time)
_MONTH = re.compile(r"\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b", re.I)
_DAY_FIRST = r"^\s*(?:1[3-9]|2\d|3[01])[./-]\d{1,2}[./-]\d"  # not a month
_DOTTED = r"^\s*\d{1,2}\.\d{1,2}\.\d"
_CLOCK = r"\s*\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?\s*"  # times of day
_SOME = 200  # values from which dates in a column of text are recognised
_SECONDS = 86_400


def time_of(series: pd.Series) -> Time | None:
    """The kind of dates or durations in a column, ``"day first"`` for text such as 31.12.2020; ``None`` for other columns.

    Times of day are durations.
    """
    dtype, present = series.dtype, series.dropna()
    if not len(present):
        return None
    if pd.api.types.is_timedelta64_dtype(dtype):
        return "duration"
    if pd.api.types.is_datetime64_any_dtype(dtype) or isinstance(dtype, pd.PeriodDtype):
        return "date"
    content = pd.api.types.infer_dtype(present, skipna=True)
    if content in ("date", "datetime", "datetime64", "timedelta", "period", "time"):
        return "duration" if content in ("timedelta", "time") else "date"
    if content == "integer" and not isinstance(dtype, pd.CategoricalDtype):
        return "date" if are_dates_as_numbers(present.to_numpy(np.float64)) else None
    text = present.iloc[:: max(1, len(present) // _SOME)].astype(str)
    if content != "string" or isinstance(dtype, pd.CategoricalDtype) or not _are_dates(text):
        return None
    if text.str.fullmatch(_CLOCK).all():
        return "duration"
    return "day first" if bool(text.str.contains(_DAY_FIRST).any() or text.str.contains(_DOTTED).all()) else "date"


def are_dates_as_numbers(values: np.ndarray) -> bool:
    """Whether integers are dates such as 20201231."""
    if len(values) <= 2 or np.isnan(values).any() or values.min() < 10000101 or values.max() > 29991231:
        return False
    return bool(_parsed(pd.Series(values.astype(int)).astype(str), "%Y%m%d").notna().all())


def _are_dates(text: pd.Series) -> bool:
    if not bool((text.str.contains(r"\d") & (text.str.contains(r"\d[-/:.]\d|^\d{4}Q\d$") | text.str.contains(_MONTH))).all()):
        return False
    return bool(_parsed(text, "mixed").notna().all())


def _parsed(text: pd.Series, pattern: str, day_first: bool = False) -> pd.Series:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pd.to_datetime(text, errors="coerce", format=pattern, dayfirst=day_first, utc=True)


def days(series: pd.Series, time: Time) -> np.ndarray:
    """Dates as days since 1970-01-01, in UTC where they name a time zone, or durations in days; NaN where missing.

    Raises:
        ValueError: a value that is not a date or duration.

    >>> days(pd.Series(["1970-01-02 12:00", None]), "date").tolist()
    [1.5, nan]
    """
    if time == "duration":
        spans = pd.to_timedelta(series.astype(object).map(_with_seconds), errors="coerce")
    else:
        if isinstance(series.dtype, pd.PeriodDtype):
            series = series.dt.to_timestamp()
        elif pd.api.types.is_numeric_dtype(series.dtype):
            series = series.astype("Int64").astype("string")
        spans = _parsed(series.astype(object), "mixed", time == "day first") - pd.Timestamp(0, tz="UTC")
    invalid = spans.isna() & series.notna()
    if invalid.any():
        raise ValueError(f"expected a {'duration' if time == 'duration' else 'date'}, got {series[invalid].iloc[0]!r}")
    return (spans / pd.Timedelta(days=1)).to_numpy(np.float64)


def _with_seconds(value):
    """Add seconds to a time of day, as pandas requires; other values are not changed."""
    if isinstance(value, datetime.time) or (isinstance(value, str) and re.fullmatch(_CLOCK, value)):
        return f"{value}:00" if str(value).count(":") == 1 else str(value)
    return value


def from_days(values: np.ndarray, time: Time) -> np.ndarray:
    """Numbers of days as dates or durations, rounded to seconds.

    >>> from_days(np.array([1.5, np.nan]), "date").astype(str).tolist()
    ['1970-01-02T12:00:00', 'NaT']
    """
    seconds = np.round(np.nan_to_num(values) * _SECONDS).astype(np.int64).astype("timedelta64[s]")
    seconds[np.isnan(values)] = np.timedelta64("NaT", "s")
    return seconds if time == "duration" else np.datetime64(0, "s") + seconds
