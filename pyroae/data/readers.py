"""Files as arrays or tables, read by NumPy, pandas, pyarrow and anndata. Data too large for memory stay on disk."""

import functools
import io
import json
import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..checks import InputError
from . import ipc, text
from .limits import LIMIT, check_columns, check_rows, check_size, check_unpacked, opened
from .rows import Rows

MEMORY = 1e9  # bytes as float32, above which data stay on disk
_BATCH = 65_536  # rows of a Parquet file unpacked at a time
_OBJECTS = 10.0  # memory per byte of JSON, as Python objects
_CELL = 20.0  # bytes per cell of a sheet, in a list and in a column
_OBJECT = 100.0  # bytes per value that is a Python object
_ARRAY = 300.0  # bytes per column and batch, besides the values
_CHUNK = 1024  # rows of a mapped file read at a time, which bounds resident memory


@dataclass
class Read:
    """The content of a file: named arrays, or a table."""

    arrays: dict[str, np.ndarray | Rows] = field(default_factory=dict)
    frame: pd.DataFrame | None = None
    remarks: list[str] = field(default_factory=list)
    label: str | None = None  # the column of labels, if the file names it


@dataclass(frozen=True)
class Options:
    """Options for reading files.

    Args:
        csv: options of ``pandas.read_csv``, instead of what is inferred.
        na: values that stand for missing ones.
        limit: bytes that a file may take in memory.
    """

    csv: dict[str, Any] = field(default_factory=dict)
    na: list = field(default_factory=list)
    limit: float = LIMIT


def read(path: Path, options: Options) -> Read:
    """Read a file, according to its suffix.

    Raises:
        ValueError: a damaged file, one that needs a package that is not there, or one too large for ``options.limit``.
    """
    return READERS[suffix_of(path)](path, options)


def suffix_of(path: Path) -> str:
    """The suffix that names the format, without that of a compression."""
    name = path.with_suffix("") if path.suffix.lower() in (".gz", ".bz2", ".xz", ".zip") else path
    return name.suffix.lower()


def _text(path: Path, options: Options) -> Read:
    frame, remarks, label = text.read(path, options.csv, options.na, options.limit)
    return Read(frame=frame, remarks=remarks, label=label)


def _json(path: Path, options: Options) -> Read:
    with opened(path, options.limit, _OBJECTS) as file:
        content = file.read()
    try:
        parsed, orient, lines = json.loads(content), None, False
    except json.JSONDecodeError as error:
        if suffix_of(path) != ".jsonl" and not error.msg.startswith("Extra data"):
            raise
        parsed, orient, lines = [json.loads(line) for line in content.splitlines() if line.strip()], None, True
    if isinstance(parsed, dict) and {"columns", "data"} <= parsed.keys() <= {"columns", "index", "data"}:
        parsed, orient = parsed["data"], "split"
    if not parsed or not all(isinstance(row, dict | list) for row in (parsed.values() if isinstance(parsed, dict) else [parsed])):
        raise ValueError("expected a list of rows, or a mapping from columns to their values")
    rows, columns = _shape_of_json(parsed)
    check_columns(columns, options.limit, path.name)
    check_size(_CELL * rows * columns, options.limit, path.name)
    return Read(frame=pd.read_json(io.BytesIO(content), orient=orient, lines=lines, dtype=False))


def _shape_of_json(parsed: Any) -> tuple[int, int]:
    """Number of rows and columns of the table that pandas makes of a list of rows or a mapping, missing cells included."""
    items = list(parsed.values()) if isinstance(parsed, dict) else parsed if isinstance(parsed, list) else [parsed]
    keys = {key for item in items if isinstance(item, dict) for key in item}
    inner = max([len(keys), *(len(item) for item in items if isinstance(item, list))])
    return (max(1, inner), len(items)) if isinstance(parsed, dict) else (len(items), max(1, inner))


def _npy(path: Path, options: Options) -> Read:
    mapping = functools.partial(np.load, path, mmap_mode="r", allow_pickle=False)
    array = mapping()
    if array.ndim < 2 or 4 * array.size <= MEMORY:
        check_size(array.nbytes, options.limit, path.name)
        return Read({"train": np.array(array)}) if array.dtype.names is None else Read(frame=as_frame(np.array(array)))
    check_rows(len(array), options.limit, path.name)
    return Read({"train": Rows(functools.partial(_mapped, mapping), torch.Size(array.shape))})


def _mapped(mapping: Callable[[], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Rows of a file, mapped again for every chunk, so that the pages are released."""
    return np.concatenate([mapping()[rows[start : start + _CHUNK]] for start in range(0, max(1, len(rows)), _CHUNK)])


def unzipped(path: Path, limit: float, times: float = 1.0) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file, after a check of the sizes in the headers; a byte takes ``times`` bytes of memory."""
    with zipfile.ZipFile(path) as archive:
        sizes = {}
        for name in archive.namelist():
            with archive.open(name) as file:
                sizes[name] = _size_in_header(file)
        check_size(times * sum(sizes.values()), limit, path.name)
        arrays = {}
        for name in sizes:
            with archive.open(name) as file:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
        return arrays


def _size_in_header(file) -> int:
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape}")
    return math.prod(shape) * dtype.itemsize


_SPLITS = {
    "train": ("train", "x_train", "X_train", "train_x", "train_images"),
    "test": ("test", "x_test", "X_test", "test_x", "test_images"),
}
_SPLITS["valid"] = ("valid", "validation", "val", "x_val", "x_valid", "X_val", "X_valid", "valid_x", "val_x")
_LABELS = {name: (f"{name}_labels", f"labels_{name}", f"y_{name}", f"{name}_y") for name in ("train", "test", "valid")}
_LABELS["valid"] += ("validation_labels", "val_labels", "y_val", "val_y")


def _npz(path: Path, options: Options) -> Read:
    arrays = unzipped(path, options.limit)
    if arrays.keys() >= {"format", "shape", "data"}:  # of scipy.sparse.save_npz
        import scipy.sparse

        check_size(float(arrays["data"].dtype.itemsize) * math.prod(arrays["shape"].tolist()), options.limit, path.name)
        matrix = scipy.sparse.load_npz(path)
        if hasattr(matrix, "check_format"):
            matrix.check_format()  # wrong indices would write outside the allocated memory
        return Read({"train": matrix.toarray()})
    splits = {split: arrays.pop(name) for split, names in _SPLITS.items() for name in names if name in arrays}
    inputs = {name: arrays.pop(name) for split in _SPLITS if (name := f"{split}_inputs") in arrays}
    labels = {f"{split}_labels": arrays.pop(name) for split, names in _LABELS.items() for name in names if name in arrays}
    if "train" not in splits:
        single = {name: array for name, array in arrays.items() if name not in ("y", "labels", "target")}
        if len(single) != 1:
            raise ValueError(f"expected an array named 'train', or a single one, got {sorted(arrays)}")
        (name,) = single
        splits["train"] = arrays.pop(name)
        for name in {"y", "labels", "target"} & arrays.keys():
            labels["train_labels"] = arrays.pop(name)
    if arrays:
        raise ValueError(f"expected arrays named train, valid, test and train_labels, train_inputs, ..., also got {sorted(arrays)}")
    return Read(splits | labels | inputs)


def _needs(package: str, extra: str, what: str) -> Any:
    try:
        return __import__(package)
    except ImportError:
        raise InputError(f"data: {what} need {package}: install pyroae[{extra}]") from None


def _parquet(path: Path, options: Options) -> Read:
    """Read a Parquet file; numbers too large for memory are unpacked to a temporary file."""
    pa = _needs("pyarrow", "parquet", "Parquet and Arrow files")
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        packed = sum(group.total_byte_size for group in groups)
        check_size(packed, options.limit, path.name)
        check_rows(file.metadata.num_rows, options.limit, path.name)
        check_columns(len(file.schema_arrow), options.limit, path.name)
        ipc.check_types(file.schema_arrow)
        if 4 * file.metadata.num_rows * len(file.schema_arrow) > MEMORY:
            return _unpacked(file.iter_batches(_BATCH), file.metadata.num_rows, file.schema_arrow, path, options)
        widths = [2 * max(8, file.schema.column(i).length) for i in range(len(file.schema))]  # once as read, once in pandas
        check_size(sum(width * group.column(i).num_values for group in groups for i, width in enumerate(widths)), options.limit, path.name)
        # a value is at most as long as the unpacked file, but may occur in every row
        batches = file.iter_batches(min(_BATCH, max(1000, int(options.limit / max(1, packed)))))
        table = pa.Table.from_batches(_counted(batches, path, options), file.schema_arrow)
        return Read(frame=table.to_pandas(ignore_metadata=True))


def _arrow(path: Path, options: Options) -> Read:
    """Read a Feather or Arrow file, like a Parquet file."""
    pa = _needs("pyarrow", "parquet", "Parquet and Arrow files")
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        ipc.check_types(file.schema)
        check_size(ipc.unpacked_size(memoryview(source.read_buffer())), options.limit, path.name)
        check_columns(len(file.schema), options.limit, path.name)
        check_size(_ARRAY * len(file.schema) * file.num_record_batches, options.limit, f"the batches of {path.name}")
        views = (file.get_batch(number) for number in range(file.num_record_batches))  # views of the file, unless it is compressed
        batches = list(_counted(views, path, options))
        rows = sum(len(batch) for batch in batches)
        check_rows(rows, options.limit, path.name)
        check_size(_OBJECT * rows * ipc.empty_columns(file.schema), options.limit, path.name)
        if 4 * rows * len(file.schema) > MEMORY:
            return _unpacked(iter(batches), rows, file.schema, path, options)
        return Read(frame=pa.Table.from_batches(batches, file.schema).to_pandas(ignore_metadata=True))


def _counted(batches: Iterator, path: Path, options: Options) -> Iterator:
    """Batches of a table, each validated; ``TooLarge`` once they or their text exceed the limit."""
    import pyarrow

    before, text = pyarrow.total_allocated_bytes(), 0
    for batch in batches:
        batch.validate(full=True)  # wrong offsets would read outside the allocated memory
        text += ipc.text_size(batch)
        check_unpacked(max(text, pyarrow.total_allocated_bytes() - before), options.limit, path.name)
        yield batch


def _unpacked(batches: Iterator, rows: int, schema: Any, path: Path, options: Options) -> Read:
    """Columns of numbers in a temporary file that exists as long as its rows are used."""
    import pyarrow

    for column in schema:
        if not pyarrow.types.is_primitive(column.type):
            raise ValueError(f"expected only numbers in a table too large for memory, got {column.type} in column {column.name!r}")
    shape = rows, len(schema)
    free, size = shutil.disk_usage(tempfile.gettempdir()).free, 4 * rows * len(schema)
    if size > free:
        raise InputError(f"data: this table takes {size / 1e9:,.1f} GB in {tempfile.gettempdir()}, which has {free / 1e9:,.1f} GB free")
    mapping = _Nameless(shape)
    table, start = mapping("w+"), 0
    for batch in batches:
        table[start : start + len(batch)] = np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], 1)
        start += len(batch)
    return Read({"train": Rows(functools.partial(_mapped, mapping), torch.Size(shape))})


class _Nameless:
    """Maps a temporary file without a name, which is removed with its last user, even after a crash."""

    def __init__(self, shape: tuple[int, ...]):
        self.file, self.shape = tempfile.TemporaryFile(), shape

    def __call__(self, mode: Any = "r") -> np.ndarray:
        return np.memmap(self.file, np.float32, mode, shape=self.shape)

    def __del__(self):
        self.file.close()


def _excel(path: Path, options: Options) -> Read:
    openpyxl = _needs("openpyxl", "excel", "Excel files")
    with zipfile.ZipFile(path) as archive:
        check_size(10.0 * sum(member.file_size for member in archive.infolist()), options.limit, path.name)
    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # those in the file may be wrong
        width = 0
        for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
            width = max(width, len(row))
            check_size(_CELL * number * width, options.limit, path.name)
    finally:
        book.close()
    check_columns(width, options.limit, path.name)
    return Read(frame=as_frame(pd.read_excel(path, na_values=list(map(str, options.na)) or None)))


def _anndata(path: Path, options: Options) -> Read:
    anndata = _needs("anndata", "anndata", "AnnData files")
    backed = anndata.read_h5ad(path, backed="r")
    rows, columns = backed.shape
    backed.file.close()
    check_size(8.0 * rows * columns, options.limit, path.name)
    return Read(frame=as_frame(anndata.read_h5ad(path)))


READERS: dict[str, Callable[[Path, Options], Read]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".tab", ".dat"), _text),
    **dict.fromkeys((".json", ".jsonl"), _json),
    ".parquet": _parquet,
    **dict.fromkeys((".arrow", ".feather"), _arrow),
    ".npy": _npy,
    ".npz": _npz,
    ".xlsx": _excel,
    ".h5ad": _anndata,
}


def as_frame(source: Any) -> pd.DataFrame | None:
    """A DataFrame of pandas, polars, Hugging Face datasets or AnnData as a pandas DataFrame; ``None`` for other objects."""
    if isinstance(source, pd.DataFrame):
        return source.set_axis([_column_name(name) for name in source.columns], axis=1).reset_index(drop=True).infer_objects()
    if isinstance(source, pd.Series):
        return source.to_frame("x0" if source.name is None else _column_name(source.name)).reset_index(drop=True).infer_objects()
    if isinstance(source, np.ndarray) and source.dtype.names is not None:  # a structured array
        return as_frame(pd.DataFrame(source))
    if hasattr(source, "var_names") and hasattr(source, "obs"):  # AnnData: cells, genes
        x = source.X.toarray() if hasattr(source.X, "toarray") else np.asarray(source.X)
        genes = pd.DataFrame(x, columns=[str(name) for name in source.var_names])
        beside = pd.DataFrame(source.obs).reset_index(drop=True)
        frame = pd.concat([genes, beside[[name for name in beside if str(name) not in genes]]], axis=1)
        frame.attrs["beside"] = tuple(frame.columns[genes.shape[1] :])  # not part of x by default
        return frame
    if hasattr(source, "to_pandas") and not isinstance(source, np.ndarray):  # polars, Hugging Face datasets, pyarrow
        return as_frame(source.to_pandas())
    return None


def _column_name(name: Any) -> str:
    """A column's name as text; the levels of a MultiIndex are joined by underscores."""
    return "_".join(map(str, name)) if isinstance(name, tuple) else str(name)
