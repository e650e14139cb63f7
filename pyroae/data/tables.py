"""Tables as data sets: the columns of x, the labels, and a printed summary."""

import collections
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from ..checks import InputError, did_you_mean
from .kinds import Kinds, infer
from .schema import KINDS, Column, Schema
from .splits import DataSet, Split, hold_out

_MODELLED = {
    "real": "Normal, standardised",
    "positive": "LogNormal, standardised",
    "count": "NegativeBinomial",
    "binary": "Bernoulli",
    "category": "Categorical of {}",
    "unit": "values from 0 to 1",
}
_DOMAIN_KINDS = {"real": "real", "counts": "count", "binary": "binary", "categories": "category", "unit": "unit"}
_ROWS = 30  # of the summary
_CLASSES = 1000


@dataclass(frozen=True)
class TableOptions:
    """Arguments of ``load`` for tables."""

    labels: str | None = None
    drop: Sequence[str] = ()
    columns: Sequence[str] | None = None
    kinds: dict[str, str] = field(default_factory=dict)
    domain: str | None = None
    missing: bool | None = None
    image_shape: tuple[int, ...] | None = None
    covariates: Sequence[str] = ()
    schema: Schema | None = None  # given: nothing is inferred, rows with unknown categories are left out
    inputs: Sequence[str] | Split = ()  # columns, or rows of another table or array


def of_frame(name: str, frame: pd.DataFrame, asked: TableOptions, test: float | None, remarks: Sequence[str] = ()) -> DataSet:
    """A DataFrame as a data set; rows for testing are held out at random.

    Raises:
        ValueError: a column that is not there, none that can be modelled, or missing values that were not asked for.
    """
    all_rows, summary = _taken(name, frame, asked, remarks)
    train, held_out = hold_out(all_rows, 0.2 if test is None else test)
    return DataSet(name, train, held_out, table=summary)


def whole(name: str, frame: pd.DataFrame, asked: TableOptions) -> Split:
    """All rows of a DataFrame as one split; the kinds of columns are inferred."""
    return _taken(name, frame, asked, ())[0]


def _taken(name: str, frame: pd.DataFrame, asked: TableOptions, remarks: Sequence[str]) -> tuple[Split, str]:
    """All rows and the summary."""
    if len(frame) == 0:
        raise InputError(f"data: expected at least one row in {name}, got none")
    if isinstance(asked.inputs, Split):
        rows, summary = _taken(name, frame, replace(asked, inputs=()), remarks)
        return rows.with_inputs(asked.inputs), summary
    if asked.schema is not None:
        return encoded(frame, asked.schema, strict=False), ""
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise InputError(f"data: column {twice[0]!r} occurs twice in {name}; rename one of them")
    _check_names(frame, asked)
    if asked.labels and asked.covariates:
        raise InputError("data: expected labels or covariates, got both; covariates may include classes")
    beside = frame.attrs.get("beside", ()) if asked.columns is None else ()
    left_out = {*asked.drop, asked.labels, *asked.covariates, *asked.inputs, *(name for name in beside if name not in asked.kinds)}
    names = [name for name in (frame.columns if asked.columns is None else asked.columns) if name not in left_out]
    body = frame if names == list(frame.columns) else frame[names]
    kinds = dict(asked.kinds)
    if asked.domain is not None:
        kinds = {column: _DOMAIN_KINDS[asked.domain] for column in body} | kinds
    genes = "beside" in frame.attrs and asked.columns is None
    inferred = infer(body, kinds, asked.columns is not None, bool(asked.labels or asked.covariates), alike=genes)
    if not inferred.columns:
        reasons = "; ".join(f"{column}: {why}" for column, why in list(inferred.left_out.items())[:5])
        raise InputError(f"data: no column of {name} can be modelled ({reasons}); select columns by columns=[...] or kinds={{...}}")
    if asked.missing is False and (holes := [column.name for column in inferred.columns if column.missing]):
        raise InputError(f"data: values are missing in column {holes[0]!r} of {name}; drop these rows, or leave missing out (--missing)")
    if inferred.label is not None:
        asked, label = replace(asked, labels=inferred.label), inferred.label
        remarks = [*remarks, f"{label}: used as the labels; kinds={{{label!r}: 'category'}} keeps it in x (--kinds)"]
    classes = _classes(frame[asked.labels], asked.labels) if asked.labels else None
    covariates = [_covariate(frame[column], asked.kinds.get(column)) for column in asked.covariates]
    schema = Schema(inferred.columns, asked.image_shape, asked.labels, classes, covariates or None, _inputs(frame, asked))
    rows = encoded(frame, schema)
    return rows, _summary(name, frame, rows, inferred, schema, remarks)


def _covariate(series: pd.Series, kind: str | None) -> Column:
    """A covariate: categories, or numbers with their mean and standard deviation as shift and scale."""
    name = str(series.name)
    inferred = infer(series.to_frame(), {name: kind} if kind else {}, kept=series.nunique() > 1)
    if not inferred.columns:
        raise InputError(f"data: the covariate {name!r} cannot be used: {inferred.left_out[name]}")
    (column,) = inferred.columns
    if column.values is not None:
        return column
    numbers = column.encode(series)
    return replace(column, kind="real", shift=column.shift + float(np.nanmean(numbers)), scale=float(np.nanstd(numbers)) or 1.0)


def _inputs(frame: pd.DataFrame, asked: TableOptions) -> Schema | None:
    """The schema of the columns that the encoder sees instead of x."""
    if not asked.inputs:
        return None
    kinds = {column: kind for column, kind in asked.kinds.items() if column in asked.inputs}
    inferred = infer(frame[list(asked.inputs)], kinds, kept=True)
    if inferred.left_out:
        column, reason = next(iter(inferred.left_out.items()))
        raise InputError(f"data: the column {column!r} cannot be an input: {reason}")
    return Schema(inferred.columns)


def encoded(frame: pd.DataFrame, schema: Schema, strict: bool = True) -> Split:
    """All rows of a table, encoded by a schema; columns are selected by name."""
    x, labels = schema.encode(frame, strict)
    seen = schema.inputs
    inputs = None if seen is None or seen.columns is None else encoded(frame, seen, strict)
    return Split(torch.from_numpy(x), None if labels is None else torch.from_numpy(labels), schema.domain, schema=schema, inputs=inputs)


def _check_names(frame: pd.DataFrame, asked: TableOptions):
    named = [
        ("drop", asked.drop),
        ("columns", asked.columns or ()),
        ("kinds", asked.kinds),
        ("labels", [asked.labels] if asked.labels else []),
        ("covariates", asked.covariates),
        ("inputs", asked.inputs),
    ]
    for option, names in named:
        for column in names:
            if column not in frame.columns:
                raise InputError(f"data: {option}: there is no column {column!r}" + did_you_mean(str(column), list(frame.columns)))
    for column, kind in asked.kinds.items():
        if kind not in KINDS:
            raise InputError(f"data: kinds: there is no kind {kind!r} (of column {column!r})" + did_you_mean(kind, KINDS))


def _classes(labels: pd.Series, name: str) -> list:
    if labels.isna().any():
        raise InputError(f"data: the label {name!r} is missing in {int(labels.isna().sum())} rows; drop these rows")
    values = labels.unique().tolist()
    if len(values) > min(_CLASSES, max(2, len(labels) // 2)):
        raise InputError(
            f"data: expected labels as classes, got {len(values):,} different values in column {name!r}; "
            f"leave it in x, or drop it (drop=[{name!r}])"
        )
    plain = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    return sorted(plain, key=lambda value: (isinstance(value, str), value))


def _summary(name: str, frame: pd.DataFrame, rows_of_x: Split, inferred: Kinds, schema: Schema, remarks: Sequence[str]) -> str:
    """The kind of each column, as lines of text."""
    columns = list(inferred.columns)
    x = rows_of_x.x.numpy()
    low, high, missing = np.fmin.reduce(x), np.fmax.reduce(x), np.isnan(x).sum(0)
    rows = [_row(column, low[i], high[i], missing[i]) for i, column in enumerate(columns[:_ROWS])]
    if len(columns) > _ROWS:
        kinds = collections.Counter(column.kind for column in columns[_ROWS:])
        rows.append(("...", "", "", "", "more columns: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())))
    if schema.label:
        rows.append((schema.label, "labels", _listed(schema.classes), "0", "not part of x"))
    rows += [(column.name, "covariate", _listed(column.values), "0", "conditions the model") for column in schema.covariates or ()]
    seen = schema.inputs.columns or () if schema.inputs is not None else ()
    rows += [(column.name, f"input, {column.kind}", _listed(column.values), "", "what the encoder sees") for column in seen]
    hidden = list(inferred.left_out.items())
    rows += [(column, "left out", "", "", reason) for column, reason in hidden[:_ROWS]]
    if len(hidden) > _ROWS:
        rows.append(("...", "left out", "", "", f"{len(hidden) - _ROWS:,} more columns"))
    head = ("column", "kind", "range", "missing", "modelled as")
    widths = [min(40, max(len(str(row[i])) for row in [head, *rows])) for i in range(4)]
    lines = ["  ".join([*(f"{str(cell):{width}}"[:width] for cell, width in zip(row, widths)), row[-1]]).rstrip() for row in (head, *rows)]
    notes = [*remarks, *(f"{column}: {text}" for column, text in inferred.remarks.items())]
    takes = "a column that is left out is taken by columns=[...] or kinds={'NAME': 'real'} (--columns NAME,... or --kinds '{NAME: real}')"
    takes += ", dates as days" * ("dates" in inferred.left_out.values())
    return "\n".join(
        [f"{name}: {len(frame):,} rows", *lines, *(f"note: {note}" for note in notes), *([f"note: {takes}"] if hidden else [])]
    )


def _row(column: Column, low: float, high: float, missing: int) -> tuple[str, ...]:
    if column.values is not None:
        span = _listed(column.values)
    else:
        edges = column.decode(np.array([low, high]))
        span = " to ".join(f"{edge:.6g}" if column.time is None else str(edge).replace("T00:00:00", "") for edge in edges)
    how = _MODELLED[column.kind].format(column.size)
    if column.time is not None:
        how += ", in days"
    elif column.shift:
        how += f", minus {column.shift:.9g}"
    return column.name, column.kind, span, str(missing), how


def _listed(values: Sequence | None) -> str:
    values = list(values or ())
    return ", ".join(map(str, values[:4])) + (f", ... ({len(values)})" if len(values) > 4 else "")
