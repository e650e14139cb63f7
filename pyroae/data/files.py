"""The user's own data: arrays, files and folders of images."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .splits import DataSet, Domain, Split, parted


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


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    if "train" not in arrays and len(arrays) != 1:
        raise ValueError(f"expected an array named 'train', or a single one, got {sorted(arrays)}")
    return arrays if "train" in arrays else {"train": next(iter(arrays.values()))}


def _parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet files need pyarrow: install pyroae[parquet]") from None
    table = pyarrow.parquet.read_table(path)
    return {"train": np.stack([column.to_numpy() for column in table.columns], 1)}


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npy": lambda path: {"train": np.load(path, allow_pickle=False)},
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
}


def of_images(folder: Path, test: float) -> DataSet:
    """All images below a folder, in grey levels or RGB as the first one is; folder names are the labels."""
    from PIL import Image

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
    if not paths:
        raise ValueError(f"data: expected images (.png, .jpg, ...) in the folder {folder}, found none")
    images, grey = [], True
    for path in paths:
        try:
            with Image.open(path) as image:
                grey = grey if images else image.mode in ("1", "L", "LA", "I", "I;16")
                images.append(_pixels(image, grey))
        except OSError as error:
            raise ValueError(f"data: {path} cannot be read as an image: {error}") from error
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"data: expected images of one size, got {images[0].shape} in {paths[0].name} and {images[-1].shape} in {path.name}"
            )
    names = sorted({path.parent for path in paths})
    labels = torch.tensor([names.index(path.parent) for path in paths]) if len(names) > 1 else None
    return of_arrays(folder.name, {"train": np.stack(images)}, "unit", test, False, labels)


def _pixels(image, grey: bool) -> np.ndarray:
    """An image as bytes; 16-bit grey levels are scaled down."""
    if grey and image.mode in ("I", "I;16"):
        return (np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8)
    return np.asarray(image.convert("L" if grey else "RGB"))


def of_arrays(
    name: str,
    arrays: dict[str, np.ndarray],
    domain: Domain | None,
    test: float | None,
    missing: bool,
    labels: Tensor | None = None,
) -> DataSet:
    """Arrays named train, and perhaps test and valid, as a data set; a test split is held out where there is none."""
    shape = np.asarray(arrays["train"]).shape
    splits = {key: _split(name, array, domain, missing) for key, array in arrays.items() if key in ("train", "valid", "validation", "test")}
    image_shape = shape[1:] if len(shape) == 3 or (len(shape) == 4 and shape[-1] == 3) else None
    train = replace(splits["train"], labels=labels)
    held_out = splits.get("test")
    if held_out is None:
        train, held_out = parted(train, 0.2 if test is None else test)
    return DataSet(name, train, held_out, splits.get("valid", splits.get("validation")), image_shape)


def _split(name: str, array: np.ndarray, domain: Domain | None, missing: bool) -> Split:
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"data: expected numbers in {name}, got entries of type {array.dtype}")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"data: expected at least one row of at least one number in {name}, got the shape {array.shape}")
    x = torch.from_numpy(np.ascontiguousarray(array)).flatten(1)
    grey = x.dtype == torch.uint8 and domain in (None, "unit")
    x = x.float() / 255 if grey and x.max() > 1 else x.float()
    seen = x[~x.isnan()] if missing else x
    if not bool(torch.isfinite(seen).all()):
        raise ValueError(
            f"data: expected finite numbers in {name}, "
            f"got NaN or infinity in {int((~torch.isfinite(x)).any(1).sum())} of {len(x)} rows; drop or fill them, or say missing=True"
        )
    found = _domain(seen)
    _check_domain(name, seen, found, domain or found)
    return Split(x, None, domain or found)


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
