"""Data sets with their schema and splits: real ones by name, files, folders of images, arrays and tables.

Your data in five lines::

    data = pa.data.load("people.csv", labels="income", drop=["name"])   # any table; print(data.table) shows the kind of each column
    vae = pa.recipes.vae(data)                                          # a Product over the columns; Missing for missing values
    pa.fit(vae, data.train)
    print(pa.log_likelihood(vae, data.test))                            # nats per example, in the data's own units
    print(vae.schema.frame(vae.sample(5)))                              # new rows, with names and categories

The kind of each column is inferred: real, positive (long tails), counts, binary or categorical; an index, identifiers, dates, free
text and constants are left out. ``columns``, ``drop``, ``kinds`` and ``labels`` override this.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..checks import InputError, did_you_mean, short
from . import arrays, images, inputs, readers, record, tables
from .limits import LIMIT, is_regular
from .named import NAMED
from .schema import Column, Schema
from .splits import Binarize, DataSet, Domain, Split, binarized, hold_out

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Column", "DataSet", "Schema", "Split", "load"]


def __dir__() -> list[str]:
    return __all__


def load(
    data: Any = "digits",
    *,
    labels: Any = None,
    covariates: str | list[str] = [],
    inputs: Any = None,
    drop: str | list[str] = [],
    columns: str | list[str] | None = None,
    kinds: dict[str, str] | None = None,
    binarize: Binarize | None = None,
    domain: Domain | None = None,
    validation: float = 0.0,
    test: float | None = None,
    missing: bool | None = None,
    na: str | float | list[str | float] = [],
    csv: dict[str, Any] | None = None,
    image_shape: list[int] | tuple[int, ...] | None = None,
    limit: float = LIMIT,
    schema: Schema | None = None,
) -> DataSet:
    """A data set by name, from a file or folder, or from an array or a table.

    Names: ``digits`` (8x8, inside scikit-learn), ``mnist``, ``fashion-mnist``, ``binarized-mnist`` (Larochelle's, as
    ``.npz`` or ``.amat``), ``omniglot`` (Burda's ``chardata.mat``). They are read from the folder in the environment
    variable ``PYROAE_DATA``; those of torchvision are downloaded if they are not there.

    Tables: ``.csv``, ``.tsv``, ``.txt`` (any separator, decimal sign, encoding and compression), ``.json``, ``.parquet``, ``.arrow``,
    ``.feather``, ``.xlsx``, ``.h5ad``; DataFrames of pandas and polars, AnnData, Hugging Face datasets. The kind of
    each column is in ``DataSet.table``. A column of classes next to pixels or genes becomes the labels.

    Arrays: ``.npy``, ``.npz`` (``train``, ``test``, ``valid``, optionally with ``train_labels`` and ``train_inputs`` and so on; or a
    single array), NumPy arrays, tensors, sparse matrices, torch's Datasets and DataLoaders. 8-bit integers are grey levels and become
    0 to 1.

    Images: a folder with a subfolder per class, or per split if they are called ``train``, ``val``, ``test``; x is ``(C, H, W)``.

    An ``.npy`` file, an Arrow or Parquet file or a folder of images of more than 1 GB (as floats) stays on disk: rows are read when
    needed, the domain is inferred from 10,000 of them, and at most 10,000 or 100 MB are held out for testing unless ``test`` is given.
    Nothing is ever unpickled.

    Args:
        data: name, path, or the data; a tuple ``(x, y)`` includes labels.
        labels: of a table, the column of labels, which is then not part of x; of an array, the labels ``(N,)``.
        covariates: columns of a table that condition the model, such as the batch of a cell, as a list or comma-separated text:
            numbers are standardised, categories one-hot. For ``pa.recipes.conditional`` or ``pa.conditions.Covariates``.
        inputs: what the encoder sees instead of x: of a table, columns, which are then not part of x, as a list or comma-separated text;
            otherwise a file, an array or a table with a row for each of x. For every recipe, and ``Autoencoder(inputs=...)``.
        drop: columns of a table to leave out, as a list or comma-separated text.
        columns: columns of a table to use, in this order, as a list or comma-separated text; by default all that can be modelled.
        kinds: kinds of columns that override the inferred ones: real, positive, count, binary, category or unit (0 to 1).
        binarize: grey levels to 0 or 1: ``"threshold"`` at a half; ``"static"``, drawn once; ``"dynamic"``, training
            data drawn again at every use, the others once.
        domain: the values that the entries of x take; by default inferred from the data.
        validation: fraction of the training data held out for validation, if the data have no validation split.
        test: fraction held out for testing, if the data have no test split; by default 0.2.
        missing: whether values may be missing (NaN), for ``pa.likelihoods.Missing``; by default in tables only.
        na: values of a table that stand for missing ones, such as -999, besides empty cells, NA, ``?`` and the like.
        csv: options of ``pandas.read_csv`` (sep, decimal, thousands, header, encoding, comment, skiprows, quotechar).
        image_shape: ``(C, H, W)`` of arrays that are images.
        limit: bytes that a file may take in memory, checked before it is read.
        schema: of a table, the columns and kinds, such as ``vae.schema``, instead of inferring them.

    Raises:
        ValueError: an unknown name or column, a missing or damaged file, or values outside the domain.

    >>> load("digits", binarize="dynamic")
    DataSet('digits': 1,437 train, 360 test; (64,) numbers each, binary)
    >>> import pandas as pd
    >>> flowers = pd.DataFrame({"petal": [1.4, 4.7, 1.3, 4.5] * 5, "species": ["setosa", "versicolor"] * 10})
    >>> load(flowers, labels="species").train.labels.unique().tolist()
    [0, 1]
    """
    if not (isinstance(validation, (int, float)) and 0.0 <= validation < 1.0):
        raise InputError(f"data: expected validation as a fraction from 0 to less than 1, got {validation!r}")
    if test is not None and not (isinstance(test, (int, float)) and 0.0 < test < 1.0):
        raise InputError(f"data: expected test as a fraction greater than 0 and less than 1, got {test!r}")
    shape = None if image_shape is None else tuple(image_shape)
    labels = str(labels) if np.isscalar(labels) and labels is not None else labels
    selected = None if columns is None else _listed(columns)
    options = readers.Options(csv or {}, _values(na), limit)
    seen = _inputs_of(inputs, options)
    asked = tables.TableOptions(labels, _listed(drop), selected, kinds or {}, domain, missing, shape, _listed(covariates), schema, seen)
    dataset = _load(data, asked, test, options)
    if dataset.validation is None and validation:
        train, held_out = hold_out(dataset.train, validation)
        dataset = replace(dataset, train=train, validation=held_out)
    return binarized(dataset, binarize) if binarize else dataset


def rows(
    data: str | os.PathLike,
    schema: Schema,
    *,
    na: Any = [],
    csv: dict[str, Any] | None = None,
    limit: float = LIMIT,
    domain: Domain | None = None,
) -> tuple[Split, "pd.DataFrame | None"]:
    """All rows of a file in order, encoded by a schema, and the table itself if it is one.

    Raises:
        ValueError: a file that cannot be read, a missing column, or an unknown category.
    """
    path, options = Path(data), readers.Options(csv or {}, _values(na), limit)
    if path.is_dir() or readers.suffix_of(path) not in readers.READERS or os.fspath(data) in NAMED:
        dataset = load(data, domain=domain if path.is_dir() else None, limit=limit)
        return record.all_rows(dataset), None
    if not is_regular(path):
        raise InputError(f"data: there is no file {data}")
    content: readers.Read = _read(os.fspath(data), lambda: readers.read(path, options))
    if content.frame is None:
        settings = arrays.ArrayOptions(domain, None, True, schema.image_shape)
        return arrays.whole(path.name, content.arrays["train"], settings, content.arrays.get("train_labels")), None
    frame = _without(content.frame, options.na)
    return tables.encoded(frame, schema), frame


def whole(data: Any) -> Split:
    """All rows of an array or a table as one split, with the inference of ``load``."""
    return _of_object(data, tables.TableOptions(), None, readers.Options(), split=False)


def _inputs_of(source: Any, options: readers.Options) -> "tuple[str, ...] | Split":
    """What the encoder sees: names of columns, or the rows of a file, an array or a table."""
    if source is None or (isinstance(source, (list, tuple)) and all(isinstance(name, str) for name in source)):
        return _listed(source or [])
    if isinstance(source, str) and readers.suffix_of(Path(source)) not in readers.READERS:
        return _listed(source)
    if not isinstance(source, (str, os.PathLike)):
        return whole(source)
    path = Path(source)
    if not is_regular(path):
        raise InputError(f"data: inputs: there is no file {source}")
    content: readers.Read = _read(os.fspath(source), lambda: readers.read(path, options))
    if content.frame is not None:
        return tables.whole(path.name, _without(content.frame, options.na), tables.TableOptions())
    if set(content.arrays) != {"train"}:
        raise InputError(f"data: inputs: expected one array in {source}, got {', '.join(content.arrays)}")
    return arrays.whole(path.name, content.arrays["train"], arrays.ArrayOptions(missing=True))


def _load(data: Any, asked: tables.TableOptions, test: float | None, options: readers.Options) -> DataSet:
    if not isinstance(data, (str, os.PathLike)):
        return _of_object(data, asked, test, options)
    name = os.fspath(data)
    if name in NAMED:
        return _of_name(name, asked, test, options.limit)
    try:
        return _of_path(name, asked, test, options)
    except (OSError, UnicodeEncodeError) as error:  # such as an invalid file name
        raise InputError(f"data: {short(name)} cannot be read: {error.strerror if isinstance(error, OSError) else error}") from error


def _of_path(name: str, asked: tables.TableOptions, test: float | None, options: readers.Options) -> DataSet:
    if "\0" in name:
        raise InputError(f"data: no file has the name {short(name)}")
    path = Path(name)
    if path.is_dir():
        _refuse_columns(asked, "a folder of images")
        _refuse_inputs(asked, "a folder of images")
        splits, classes = images.read(path, options.limit)
        settings = arrays.ArrayOptions("unit" if asked.domain is None else asked.domain, test, False, None, classes)
        return arrays.of_arrays(
            path.resolve().name, {key: x for key, (x, _) in splits.items()}, settings, {key: y for key, (_, y) in splits.items()}
        )
    if readers.suffix_of(path) in readers.READERS:
        if not is_regular(path):
            raise InputError(f"data: there is no file {name}" if not path.exists() else f"data: {name} is a pipe or a device, not a file")
        return _of_file(name, path, asked, test, options)
    if path.suffix or path.parent != Path("."):
        raise InputError(f"data: expected a name, a folder of images or a file ending in {', '.join(readers.READERS)}, got {name}")
    raise InputError(f"data: there is no data set {name!r}" + did_you_mean(name, NAMED))


def _of_name(name: str, asked: tables.TableOptions, test: float | None, limit: float) -> DataSet:
    if asked.domain is not None or test is not None:
        raise InputError(f"data: {name} has a domain and a test split of its own; leave {'test' if asked.domain is None else 'domain'} out")
    _refuse_columns(asked, name)
    _refuse_inputs(asked, name)
    return _read(name, lambda: NAMED[name](limit))


def _of_file(name: str, path: Path, asked: tables.TableOptions, test: float | None, options: readers.Options) -> DataSet:
    content: readers.Read = _read(name, lambda: readers.read(path, options))
    stem = path.name.partition(".")[0] or path.name
    if content.frame is not None:
        asked = replace(asked, labels=content.label) if asked.labels is None and content.label not in asked.drop else asked
        return tables.of_frame(stem, _without(content.frame, options.na), asked, test, content.remarks)
    x, labels, inputs = ({key.removesuffix(end): a for key, a in content.arrays.items() if _ending(key) == end} for end in ("", *_ENDINGS))
    inputs = {key: arrays.whole(f"{name}, {key}", array, arrays.ArrayOptions(missing=True)) for key, array in inputs.items()}
    _refuse_columns(asked if isinstance(asked.labels, str) else replace(asked, labels=None), name)
    labels = labels if asked.labels is None else {"train": asked.labels}
    inputs = {"train": asked.inputs} if isinstance(asked.inputs, Split) else inputs
    return arrays.of_arrays(stem, x, _as_asked(asked, test), labels, inputs)


_ENDINGS = ("_labels", "_inputs")  # of the names of arrays beside x


def _ending(name: str) -> str:
    return next((end for end in _ENDINGS if name.endswith(end)), "")


def _of_object(data: Any, asked: tables.TableOptions, test: float | None, options: readers.Options, split: bool = True) -> Any:
    """Arrays, tables, and pairs of these with labels, as a data set or as one split."""
    if isinstance(data, (tuple, list)) and len(data) == 2 and asked.labels is None and not np.isscalar(data[0]):
        data, asked = data[0], replace(asked, labels=data[1])
    if isinstance(data, (Dataset, DataLoader)) and not hasattr(data, "to_pandas"):
        columns = inputs.gathered(data)
        return _of_object(columns[0] if len(columns) == 1 else columns, asked, test, options, split)
    if (frame := readers.as_frame(data)) is not None:
        if asked.labels is not None and not isinstance(asked.labels, str):
            frame, asked = frame.assign(label=np.asarray(asked.labels)), replace(asked, labels="label")
        frame = _without(frame, options.na)
        return tables.of_frame("table", frame, asked, test) if split else tables.whole("table", frame, asked)
    if not (isinstance(data, (Tensor, np.ndarray)) or hasattr(data, "toarray")):
        raise InputError(
            f"data: expected a name, a path, an array, a tensor, a table or a Dataset, got {type(data).__name__}; "
            "convert it with np.array(...) or pd.DataFrame(...)"
        )
    labels = asked.labels
    _refuse_columns(replace(asked, labels=None), "an array")
    if isinstance(labels, str):
        raise InputError("data: an array has no column of labels; give the labels, labels=y, or a DataFrame")
    array = arrays.as_array(data, options.limit)
    if array.dtype.kind in "OUS":
        raise InputError(f"data: expected numbers, got an array of {array.dtype}; give a DataFrame, whose columns may hold text")
    missing = True if isinstance(data, np.ma.MaskedArray) and asked.missing is None else asked.missing
    settings = _as_asked(replace(asked, missing=missing), test)
    seen = {"train": asked.inputs} if isinstance(asked.inputs, Split) else {}
    if not split:
        return arrays.whole("tensor", array, replace(settings, missing=True), labels)
    return arrays.of_arrays("tensor", {"train": array}, settings, {"train": labels}, seen)


def _as_asked(asked: tables.TableOptions, test: float | None) -> arrays.ArrayOptions:
    return arrays.ArrayOptions(asked.domain, test, bool(asked.missing), asked.image_shape)


def _refuse_columns(asked: tables.TableOptions, what: str):
    options = {name: getattr(asked, name) for name in ("labels", "covariates", "drop", "columns", "kinds")}
    options["inputs"] = () if isinstance(asked.inputs, Split) else asked.inputs
    used = [name for name, value in options.items() if isinstance(value, str) or value]
    if used:
        raise InputError(f"data: {used[0]} is for tables, whose columns have names; {what} has none")


def _refuse_inputs(asked: tables.TableOptions, what: str):
    if isinstance(asked.inputs, Split):
        raise InputError(f"data: {what} has splits of its own; give x and its inputs as arrays, pa.data.load(x, inputs=u)")


def _without(frame, na: list):
    """The table with NaN for the given values; columns of text that then are all numbers are converted."""
    if not na:
        return frame
    hit = frame.isin([*na, *(float(v) for v in na if _is_number(v))])
    frame = frame.mask(hit)
    for i in np.flatnonzero(hit.any().to_numpy()):
        series = frame.iloc[:, i]
        if series.dtype.type in (np.object_, str) and series.notna().any() and all(map(_is_number, series.dropna())):
            frame.isetitem(i, series.astype(float))
    return frame


def _values(na: Any) -> list:
    return [na] if isinstance(na, (str, float, int)) else list(na)


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(map(str, names))


def _is_number(value: Any) -> bool:
    try:
        float(value)
        return True
    except (TypeError, ValueError):
        return False


def _read(name: str, reader: Callable[[], Any]) -> Any:
    """Call a reader; anything that it raises, such as for a damaged file, becomes a ``ValueError``."""
    try:
        return reader()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"data: {name} cannot be read: {str(error) or type(error).__name__}") from error
