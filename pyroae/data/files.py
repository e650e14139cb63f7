"""The user's own data: arrays, files and folders of images. What is too large for memory stays on disk."""

import csv
import functools
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import splits
from .rows import Rows, tensor_of
from .splits import DataSet, Domain, Split, parted

_MEMORY = 1e9  # bytes as float32, above which data stay on disk
_CHUNK = 1024  # rows of a mapped file touched at a time, so that few of its pages count as this process's memory
_SAMPLE = 10_000  # rows on disk whose values tell the domain
_HELD_OUT = 10_000  # rows on disk held out for testing, at most, unless a share is asked for


def _npy(path: Path) -> dict[str, np.ndarray | Rows]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim < 2 or 4 * array.size <= _MEMORY:
        return {"train": np.array(array)}
    return {"train": Rows(functools.partial(_mapped, path), torch.Size(array.shape))}


def _mapped(path: str | os.PathLike, rows: np.ndarray) -> np.ndarray:
    """Rows of an ``.npy`` file, mapped afresh for every chunk: what a mapping has touched leaves memory with it."""
    parts = [rows[start : start + _CHUNK] for start in range(0, max(1, len(rows)), _CHUNK)]
    return np.concatenate([np.load(path, mmap_mode="r", allow_pickle=False)[part] for part in parts])


def _csv(path: Path) -> dict[str, np.ndarray]:
    with open(path, newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and not all(_is_number(cell) for cell in rows[0]):
        rows = rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]) or not all(_is_number(cell) for cell in row):
            raise ValueError(f"expected {len(rows[0])} numbers in data row {number}, got {','.join(row)[:60]!r}")
    return {"train": np.array([[_number(cell) for cell in row] for row in rows], dtype=np.float32)}


def _number(cell: str) -> float:
    """NaN where nothing, or NA, is written."""
    return float("nan" if cell.strip() in ("", "NA") else cell)


def _is_number(cell: str) -> bool:
    try:
        _number(cell)
        return True
    except ValueError:
        return False


def unzipped(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file, closed again whatever is wrong with it."""
    with zipfile.ZipFile(path) as archive:
        arrays = {}
        for name in archive.namelist():
            with archive.open(name) as file:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
        return arrays


def _npz(path: Path) -> dict[str, np.ndarray]:
    arrays = unzipped(path)
    if "train" not in arrays and len(arrays) != 1:
        raise ValueError(f"expected an array named 'train', or a single one, got {sorted(arrays)}")
    return arrays if "train" in arrays else {"train": next(iter(arrays.values()))}


def _table(path: Path) -> dict[str, np.ndarray | Rows]:
    """A Parquet or Arrow file, record batch by record batch; a large one is unpacked to a temporary file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet and Arrow files need pyarrow: install pyroae[parquet]") from None
    if path.suffix == ".parquet":
        file = pyarrow.parquet.ParquetFile(path)
        return {"train": _unpacked(file.iter_batches(), file.metadata.num_rows, len(file.schema_arrow.names))}
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]  # views, not read yet
        return {"train": _unpacked(iter(batches), sum(len(batch) for batch in batches), len(file.schema.names))}


def _unpacked(batches: Iterator, rows: int, columns: int) -> np.ndarray | Rows:
    """Tables of numbers below one another: in memory, or in a file that lasts as long as its rows are in use."""
    if small := 4 * rows * columns <= _MEMORY:
        table = np.empty((rows, columns), np.float32)
    else:
        file = tempfile.NamedTemporaryFile(suffix=".npy", prefix="pyroae-")  # noqa: SIM115 (closed, and so deleted, with the rows)
        table = np.lib.format.open_memmap(file.name, "w+", np.float32, (rows, columns))
    start = 0
    for batch in batches:
        table[start : start + len(batch)] = np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], 1)
        start += len(batch)
    return table if small else Rows(_Temporary(file), torch.Size(table.shape))


class _Temporary:
    """Reads a temporary ``.npy`` file, and keeps it from being deleted."""

    def __init__(self, file):
        self.file = file

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return _mapped(self.file.name, rows)


READERS: dict[str, Callable[[Path], dict[str, np.ndarray | Rows]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _table,
    ".arrow": _table,
    ".feather": _table,
}


def of_images(folder: Path, test: float | None) -> DataSet:
    """All images below a folder, in grey levels or RGB as the first one is; folder names are the labels.

    Too many for memory are decoded as they are needed, by processes beside the training.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
    if not paths:
        raise ValueError(f"data: expected images (.png, .jpg, ...) in the folder {folder}, found none")
    first = _image(paths[0], None)
    decode = functools.partial(_images, paths, first.shape)
    shape = torch.Size([len(paths), *first.shape])
    large = 4 * shape.numel() > _MEMORY
    train = Rows(decode, shape, workers=min(8, os.cpu_count() or 1)) if large else decode(np.arange(len(paths)))
    names = sorted({path.parent for path in paths})
    labels = torch.tensor([names.index(path.parent) for path in paths]) if len(names) > 1 else None
    return of_arrays(folder.name, {"train": train}, "unit", test, False, labels)


def _images(paths: list[Path], shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
    """Some of the images, which must all be of the first one's shape."""
    images = [_image(paths[row], len(shape) == 2) for row in rows]
    for row, image in zip(rows, images):
        if image.shape != shape:
            raise ValueError(f"data: expected images of one size, got {shape} in {paths[0].name} and {image.shape} in {paths[row].name}")
    return np.stack(images)


def _image(path: Path, grey: bool | None) -> np.ndarray:
    """An image as bytes, in grey levels, in RGB, or as it is; ``ValueError`` for a file that is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return _pixels(image, image.mode in ("1", "L", "LA", "I", "I;16") if grey is None else grey)
    except Exception as error:  # decoders of damaged files raise anything
        raise ValueError(f"data: {path} cannot be read as an image: {error}") from error


def _pixels(image, grey: bool) -> np.ndarray:
    """An image as bytes; 16-bit grey levels are scaled down."""
    if grey and image.mode in ("I", "I;16"):
        return (np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8)
    return np.asarray(image.convert("L" if grey else "RGB"))


def of_arrays(
    name: str,
    arrays: dict[str, np.ndarray | Rows],
    domain: Domain | None,
    test: float | None,
    missing: bool,
    labels: Tensor | None = None,
) -> DataSet:
    """Arrays named train, and perhaps test and valid, as a data set; a test split is held out where there is none."""
    shape = arrays["train"].shape
    splits = {key: _split(name, array, domain, missing) for key, array in arrays.items() if key in ("train", "valid", "validation", "test")}
    for key in splits:
        if arrays[key].shape[1:] != shape[1:]:
            raise ValueError(f"data: expected rows of one shape in {name}, got {shape[1:]} in train and {arrays[key].shape[1:]} in {key}")
    image_shape = tuple(shape[1:]) if len(shape) == 3 or (len(shape) == 4 and shape[-1] == 3) else None
    train = replace(splits["train"], labels=labels)
    held_out = splits.get("test")
    if held_out is None:
        train, held_out = parted(train, _usual(train) if test is None else test)
    return DataSet(name, train, held_out, splits.get("valid", splits.get("validation")), image_shape)


def _usual(train: Split) -> float:
    """The share that is held out for testing; of rows on disk so few that they can be in memory."""
    if isinstance(train.x, Tensor):
        return 0.2
    at_most = min(_HELD_OUT, splits.FEW * len(train) // train.x.nbytes)
    return min(0.2, max(1, at_most) / len(train))


def _split(name: str, array: np.ndarray | Rows, domain: Domain | None, missing: bool) -> Split:
    on_disk = isinstance(array, Rows)
    rows = array.read(np.linspace(0, len(array) - 1, min(_SAMPLE, len(array))).astype(int)) if on_disk else np.asarray(array)
    if rows.dtype.kind not in "biuf":
        raise ValueError(f"data: expected numbers in {name}, got entries of type {rows.dtype}")
    if rows.ndim < 2 or rows.size == 0:
        raise ValueError(f"data: expected at least one row of at least one number in {name}, got the shape {rows.shape}")
    grey = rows.dtype == np.uint8 and domain in (None, "unit") and bool(rows.max() > 1)
    numbers = functools.partial(_numbers, name=name, divisor=255 if grey else 1, missing=missing)
    x = numbers(tensor_of(rows))
    seen = x[~x.isnan()] if missing else x
    if seen.numel() == 0:
        raise ValueError(f"data: expected some numbers in {name}, got NaN alone")
    found = _domain(seen)
    _check_domain(name, seen, found, domain or found)
    if on_disk:
        flat = torch.Size([len(array), x[0].numel()])
        x = replace(array, shape=flat).then(numbers)
    return Split(x, None, domain or found)


def _numbers(x: Tensor, name: str, divisor: int, missing: bool) -> Tensor:
    """Rows as vectors of floats; ``ValueError`` for NaN and infinity."""
    x = x.flatten(1).float() / divisor
    strange = ~torch.isfinite(x) & ~x.isnan() if missing else ~torch.isfinite(x)
    if bool(strange.any()):
        raise ValueError(
            f"data: expected finite numbers in {name}, "
            f"got NaN or infinity in {int(strange.any(1).sum())} of {len(x)} rows; drop or fill them, or say missing=True"
        )
    return x


def _domain(x: Tensor) -> Domain:
    whole = bool((x == x.round()).all())
    low, high = x.min().item(), x.max().item()
    if low < 0 or (high > 1 and not whole):
        return "real"
    if high > 1:
        return "counts"
    return "binary" if whole else "unit"


def _check_domain(name: str, x: Tensor, found: Domain, asked: Domain):
    allowed = {"binary": {"binary"}, "unit": {"binary", "unit"}, "counts": {"binary", "counts"}, "categories": {"binary", "counts"}}
    if asked != "real" and asked not in allowed:
        raise ValueError(f"data: expected domain as one of real, {', '.join(allowed)}, got {asked!r}")
    if asked in allowed and found not in allowed[asked]:
        raise ValueError(
            f"data: {name} was said to be {asked}, but its values from {x.min().item():.4g} to {x.max().item():.4g} "
            f"are {found}; rescale them or say domain={found!r}"
        )
