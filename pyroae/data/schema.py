"""The schema of x: columns with names and kinds, or the shape of an image. Models, runs and files store it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from torch import Tensor

from ..checks import InputError, did_you_mean
from ..registry import Part, register, register_base
from . import dates
from .dates import TIMES, Time

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["real", "positive", "count", "binary", "category", "unit"]
KINDS: tuple[str, ...] = get_args(Kind)
_DOMAINS = {"real": "real", "count": "counts", "binary": "binary", "unit": "unit", "category": "categories"}
_AT_ONCE, _ROWS = 16, 8192  # columns and rows written at a time
_SHOWN = 8  # values listed in a message


@dataclass(frozen=True)
class Column:
    """One column of a table: entry x is ``(value - shift) / scale``, or the position of the value in ``values``.

    Args:
        name: of the column.
        kind: ``"real"``, ``"positive"``, ``"count"``, ``"binary"``, ``"category"``, or ``"unit"`` for values between 0 and 1.
        values: of a binary or categorical column, the values encoded as 0, 1, ...
        shift: subtracted in float64 if float32 could not resolve the values; it does not change densities.
        scale: 255 for 8-bit grey levels, otherwise 1.
        missing: whether entries may be missing (NaN).
        time: of a real column of dates or durations, whose numbers are days: ``"date"``, ``"day first"`` (31.12.2020) or ``"duration"``.

    >>> Column("species", "category", values=["setosa", "virginica"]).size
    2
    """

    name: str
    kind: Kind
    values: Sequence[Any] | None = None
    shift: float = 0.0
    scale: float = 1.0
    missing: bool = False
    time: Time | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as plain data."""
        values = None if self.values is None else list(self.values)
        every = vars(self) | {"values": values}
        return {name: value for name, value in every.items() if value not in (None, False) and (name, value) not in _DEFAULTS}

    @property
    def size(self) -> int:
        """Number of categories; 1 for numbers."""
        return len(self.values) if self.kind == "category" and self.values is not None else 1

    def encode(self, series: "pd.Series", strict: bool = True) -> np.ndarray:
        """The entries of x for a pandas column, as float64, with NaN for missing values and, unless ``strict``, for unknown categories.

        Raises:
            ValueError: values that are not numbers, that are infinite, or categories that the training data did not have.
        """
        from .kinds import numeric

        if self.values is not None:
            return self.codes(series, strict)
        numbers = self._days(series) if self.time is not None else numeric(series)
        if numbers is None:
            raise InputError(f"data: expected numbers in column {self.name!r}, got {series.dropna().iloc[0]!r}")
        if bool(np.isinf(numbers).any()):
            raise InputError(f"data: column {self.name!r} is infinite in row {int(np.isinf(numbers).argmax()) + 1}; drop that row")
        return (numbers - self.shift) / self.scale

    def _days(self, series: "pd.Series") -> np.ndarray:
        try:
            return dates.days(series, self.time)
        except ValueError as error:
            raise InputError(f"data: column {self.name!r}: {error}") from error

    def codes(self, series: "pd.Series", strict: bool = True) -> np.ndarray:
        """The indices of a column's values in ``values``."""
        import pandas as pd

        missing = series.isna().to_numpy()
        codes = pd.Index(list(self.values), dtype=object).get_indexer(pd.Index(series.astype(object), dtype=object)).astype(float)
        unknown = (codes < 0) & ~missing
        if unknown.any():  # categories may be text in one file and numbers in another
            as_text = pd.Index([str(value) for value in self.values], dtype=object)
            codes[unknown] = as_text.get_indexer(pd.Index([_as_text(value) for value in series[unknown]], dtype=object))
            unknown = (codes < 0) & ~missing
        if unknown.any() and strict:
            new = sorted({_as_text(value) for value in series[unknown]})
            raise InputError(
                f"data: column {self.name!r} has the value{'s' * (len(new) > 1)} {', '.join(map(repr, new[:_SHOWN]))} "
                f"in {int(unknown.sum())} rows, unknown to this model; known: {', '.join(map(str, self.values[:_SHOWN]))}"
                f"{', ...' * (len(self.values) > _SHOWN)}; drop these rows, or leave the cells empty"
            )
        codes[missing | unknown] = np.nan
        return codes

    def decode(self, entries: np.ndarray) -> np.ndarray:
        """Values in the data's units and names for entries of x."""
        if self.values is None:
            numbers = entries.astype(np.float64) * self.scale + self.shift
            return numbers if self.time is None else dates.from_days(numbers, self.time)
        missing = np.isnan(entries)
        values = np.array([*self.values, None], dtype=object)
        return values[np.where(missing, len(self.values), np.nan_to_num(entries).round().clip(0, len(self.values) - 1)).astype(int)]


_DEFAULTS = (("shift", 0.0), ("scale", 1.0))


def _as_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


@register("schemas")
@register_base("schemas")
class Schema(Part):
    """The columns of x or the shape of its image, and the column of labels with the names of the classes, or the covariates.

    Args:
        columns: a ``Column`` for each entry of x, or its fields as a dictionary; ``None`` for arrays without names.
        image_shape: ``(C, H, W)`` or ``(H, W)``, if x is an image.
        label: the column of labels.
        classes: the names of the labels 0, 1, ...
        covariates: columns that condition the model, as y ``(N, C)``: numbers standardised, categories one-hot.
        inputs: the schema of what the encoder sees instead of x.

    >>> import torch
    >>> schema = Schema([Column("age", "real"), Column("smokes", "binary", values=["no", "yes"])])
    >>> schema.frame(torch.tensor([[31.0, 1.0]])).to_dict("records")
    [{'age': 31.0, 'smokes': 'yes'}]
    """

    def __init__(
        self,
        columns: Sequence[Column | dict[str, Any]] | None = None,
        image_shape: Sequence[int] | None = None,
        label: str | None = None,
        classes: Sequence[Any] | None = None,
        covariates: Sequence[Column | dict[str, Any]] | None = None,
        inputs: "Schema | None" = None,
    ):
        self.columns, self.covariates = (
            self._as_columns(name, value) for name, value in (("columns", columns), ("covariates", covariates))
        )
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.label, self.classes, self.inputs = label, None if classes is None else tuple(classes), inputs
        self.arguments |= {name: list(value) for name, value in self.arguments.items() if isinstance(value, tuple)}

    def _as_columns(self, name: str, columns: Sequence[Column | dict[str, Any]] | None) -> tuple[Column, ...] | None:
        if columns is None:
            return None
        made = tuple(_column(column) if isinstance(column, dict) else column for column in columns)
        _check(made)
        self.arguments[name] = [column.as_dict() for column in made]
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.__dict__ | {"arguments": 0} == other.__dict__ | {"arguments": 0}

    __hash__ = None

    def as_dict(self) -> dict[str, Any]:
        """The constructor's arguments as plain data."""
        return {"class": "schemas.Schema"} | self.arguments | ({} if self.inputs is None else {"inputs": self.inputs.as_dict()})

    def __deepcopy__(self, memo: dict) -> "Schema":
        return self  # immutable

    @property
    def names(self) -> list[str] | None:
        """The columns' names."""
        return None if self.columns is None else [column.name for column in self.columns]

    @property
    def domain(self) -> str:
        """The domain of x if all columns have the same kind; otherwise ``"table"``."""
        kinds = {column.kind for column in self.columns or ()}
        return _DOMAINS.get(next(iter(kinds)), "table") if len(kinds) == 1 else "table"

    def encode(self, frame: "pd.DataFrame", strict: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
        """x ``(N, columns)`` in float32, and the labels if the frame has them. Columns are selected by name.

        Unknown categories are missing values, and unknown labels -1, unless ``strict``.

        Raises:
            ValueError: a column is not there, or holds values that this schema does not know.
        """
        if self.columns is None:
            raise InputError("data: expected an array: the data of this model have no column names")
        for column in self.columns:
            if column.name not in frame:
                raise InputError(f"data: there is no column {column.name!r}" + did_you_mean(column.name, [str(name) for name in frame]))
        x = np.empty((len(frame), len(self.columns)), np.float32)
        series = dict(frame.items())
        for start in range(0, len(self.columns), _AT_ONCE):
            some = self.columns[start : start + _AT_ONCE]
            _fill(x[:, start : start + _AT_ONCE], [_as_float32(column.encode(series[column.name], strict), column.name) for column in some])
        return x, self._covariates(frame) if self.covariates else self._labels(frame, strict)

    @property
    def covariate_size(self) -> int:
        """The size of y for covariates."""
        return sum(column.size for column in self.covariates or ())

    def _covariates(self, frame: "pd.DataFrame") -> np.ndarray:
        """Covariates ``(N, C)``: numbers standardised, categories one-hot."""
        parts = []
        for column in self.covariates or ():
            if column.name not in frame:
                raise InputError(f"data: there is no covariate {column.name!r}" + did_you_mean(column.name, [str(name) for name in frame]))
            entries = column.encode(frame[column.name])
            if np.isnan(entries).any():
                raise InputError(f"data: the covariate {column.name!r} is missing in {int(np.isnan(entries).sum())} rows; drop these rows")
            parts.append(np.eye(column.size)[entries.astype(int)] if column.kind == "category" else entries[:, None])
        return np.concatenate(parts, 1).astype(np.float32)

    def _labels(self, frame: "pd.DataFrame", strict: bool) -> np.ndarray | None:
        if self.label is None or self.label not in frame:
            return None
        codes = self._codes(frame[self.label], strict)
        if strict and np.isnan(codes).any():
            raise InputError(f"data: the label {self.label!r} is missing in {int(np.isnan(codes).sum())} rows; drop these rows")
        return np.nan_to_num(codes, nan=-1).astype(np.int64)

    def class_numbers(self, labels: np.ndarray) -> np.ndarray:
        """The indices of classes by name; ``ValueError`` for unknown ones."""
        import pandas as pd

        return self._codes(pd.Series(labels.tolist()), strict=True).astype(np.int64)

    def _codes(self, labels: "pd.Series", strict: bool) -> np.ndarray:
        return Column(self.label or "label", "category", values=self.classes).codes(labels, strict)

    def frame(self, x: Tensor | np.ndarray) -> "pd.DataFrame":
        """A DataFrame in the data's units, with column names and categories, for x of shape ``(N, ...)``.

        Raises:
            ValueError: rows of another length than the schema has columns, as of several draws in one tensor.
        """
        import pandas as pd

        x = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x)
        x = x.reshape(len(x), -1)
        if self.columns is None:
            return pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])
        if x.shape[1] != len(self.columns):
            raise ValueError(f"frame: expected rows of {len(self.columns)} columns, got {x.shape[1]} values each; give one draw at a time")
        whole = {"count"}
        data = {}
        for i, column in enumerate(self.columns):
            values = column.decode(x[:, i])
            data[column.name] = values.astype(np.int64) if column.kind in whole and _is_whole(values) else values
        return pd.DataFrame(data)

    @property
    def is_shifted(self) -> bool:
        """Whether some columns have a shift."""
        return any(column.shift for column in self.columns or ())

    def centred(self, x: np.ndarray) -> np.ndarray:
        """An array ``(N, columns)`` in the data's units with the shifts subtracted, unless that has been done."""
        if self.columns is None or x.ndim != 2 or x.shape[1] != len(self.columns) or not self.is_shifted:
            return x
        shifts = np.array([column.shift for column in self.columns])
        with np.errstate(invalid="ignore"):
            raw = np.nanmax(np.abs(x), 0, initial=0.0) > np.abs(shifts) / 2
        return x.astype(np.float64) - np.where(raw, shifts, 0.0)


def _column(fields: dict[str, Any]) -> Column:
    try:
        return Column(**fields)
    except TypeError as error:
        raise ValueError(f"Schema: expected the fields of a column, such as name and kind, got {sorted(map(str, fields))}") from error


def _check(columns: tuple[Column, ...]):
    for column in columns:
        if not isinstance(column.name, str) or column.kind not in KINDS:
            raise ValueError(f"Schema: expected columns with a name and a kind of {', '.join(KINDS)}, got {column!r}")
        if (column.kind in ("category", "binary")) != isinstance(column.values, (list, tuple)):
            raise ValueError(f"Schema: expected values for binary and categorical columns only, got {column!r}")
        if column.time is not None and (column.time not in TIMES or column.kind != "real"):
            raise ValueError(f"Schema: expected a time of {', '.join(TIMES)} for real columns only, got {column!r}")


def _fill(x: np.ndarray, columns: list[np.ndarray]):
    """Write columns into ``(N, columns)`` in blocks of rows, which is faster by cache locality."""
    for start in range(0, len(x), _ROWS):
        for i, column in enumerate(columns):
            x[start : start + _ROWS, i] = column[start : start + _ROWS]


def _is_whole(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and (values == values.round()).all() and np.abs(values).max(initial=0) < 2**62)


def _as_float32(values: np.ndarray, name: str) -> np.ndarray:
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    if largest > 1e18:  # its square is beyond float32
        row = int(np.nanargmax(np.abs(values)))
        raise InputError(
            f"data: column {name!r} is {values[row]:.4g} in row {row + 1}, too large for float32; divide the column by {largest:.0e}"
        )
    if 0.0 < largest < 1e-18:
        raise InputError(
            f"data: column {name!r} is at most {largest:.4g} in size, too small for float32; multiply it by {min(1 / largest, 1e300):.0e}"
        )
    return values.astype(np.float32)
