"""Arrays as data sets: their domain, image shape, and precision in float32."""

import decimal
import functools
import warnings
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import InputError
from . import splits
from .limits import check_size
from .rows import Rows, tensor_of
from .schema import Column, Schema
from .splits import DataSet, Domain, Split, hold_out

_SAMPLE = 10_000  # rows on disk from which the domain is inferred
_HELD_OUT = 10_000  # at most so many rows on disk are held out for testing by default
_CHANNELS = (1, 3, 4)
_FAR = 100.0  # limit for the median distance of another split's values from the training mean, in standard deviations
_SIDE = 8  # least height and width of images that are recognised as such


@dataclass(frozen=True)
class ArrayOptions:
    """Arguments of ``load`` for arrays."""

    domain: Domain | None = None
    test: float | None = None
    missing: bool | None = None
    image_shape: tuple[int, ...] | None = None
    classes: list[str] | None = None


def of_arrays(
    name: str,
    arrays: dict[str, np.ndarray | Rows],
    asked: ArrayOptions,
    labels: dict[str, Tensor | None] | None = None,
    inputs: dict[str, Split] | None = None,
) -> DataSet:
    """Arrays named train, and optionally test and valid, as a data set; without a test array, a test split is held out.

    ``inputs`` are what the encoder sees instead of them; one of the training data must have one for every split.
    """
    labels, classes = _numbered({key: column for key, column in (labels or {}).items() if column is not None})
    asked = replace(asked, classes=classes) if classes else asked
    splits: dict[str, Split] = {}
    for key in sorted(arrays, key=lambda key: key != "train"):  # first, since the others must have its domain
        array = arrays[key]
        splits[key] = _split(name if key == "train" else f"{name}, {key}", array, asked, splits.get("train"))
        if splits[key].event_shape != splits["train"].event_shape:
            shapes = splits["train"].event_shape, splits[key].event_shape
            raise InputError(f"data: expected rows of one shape in {name}, got {tuple(shapes[0])} in train and {tuple(shapes[1])} in {key}")
        if key != "train" and splits[key].domain in ("real", "counts"):
            _check_scale(name, key, splits["train"], splits[key])
        if key in labels:
            splits[key] = replace(splits[key], labels=_checked_labels(labels[key], len(splits[key]), name))
        if inputs:
            if key not in inputs:
                raise InputError(f"data: expected inputs for every split of {name}, got none for {key}; name an array {key}_inputs")
            splits[key] = splits[key].with_inputs(inputs[key])
    train, held_out = splits["train"], splits.get("test")
    if held_out is None:
        train, held_out = hold_out(train, _test_fraction(train) if asked.test is None else asked.test)
    elif asked.test is not None:
        raise InputError(f"data: {name} has a test split of its own; leave test out")
    return DataSet(name, train, held_out, splits.get("valid"))


def whole(name: str, array: np.ndarray, asked: ArrayOptions, labels: Any = None) -> Split:
    """All rows of an array."""
    labels, classes = _numbered({} if labels is None else {"train": labels})
    split = _split(name, array, replace(asked, classes=classes) if classes else asked, None)
    labels = labels.get("train")
    return split if labels is None else replace(split, labels=_checked_labels(labels, len(split), name))


def as_array(source: Any, limit: float) -> np.ndarray:
    """Tensors of any type and layout, masked arrays (NaN where masked) and sparse matrices as a dense NumPy array."""
    if isinstance(source, Tensor):
        if source.is_meta or source.is_nested or source.is_quantized:
            raise InputError("data: expected a tensor of numbers in memory, got a nested, quantized or meta tensor")
        source = source.detach()
        if source.layout != torch.strided:
            check_size(4.0 * source.shape.numel(), limit, "this sparse tensor")
            source = source.to_dense()
        source = source.cpu().resolve_conj().resolve_neg()
        return (source.float() if source.dtype in (torch.bfloat16, torch.float16) else source).numpy()
    if hasattr(source, "toarray"):
        check_size(4.0 * np.prod(source.shape, dtype=float), limit, "this sparse matrix")
        source = source.toarray()
    if isinstance(source, np.ma.MaskedArray):
        return source.astype(np.float64).filled(np.nan) if np.ma.is_masked(source) else source.data
    array = np.asarray(source)
    return _numbers_of_objects(array) if array.dtype == object else array


def _numbers_of_objects(array: np.ndarray) -> np.ndarray:
    """Convert an array of Python numbers to float64, None to NaN; other arrays of objects are not changed."""
    return array.astype(np.float64) if all(value is None or isinstance(value, Real | decimal.Decimal) for value in array.flat) else array


def _test_fraction(train: Split) -> float:
    """The fraction to hold out for testing; rows on disk must fit into memory."""
    if isinstance(train.x, Tensor):
        return 0.2
    at_most = min(_HELD_OUT, splits.FEW * len(train) // train.x.nbytes)
    return min(0.2, max(1, at_most) / len(train))


def _split(name: str, array: np.ndarray | Rows, asked: ArrayOptions, train: Split | None) -> Split:
    on_disk = isinstance(array, Rows)
    rows = array.read(np.linspace(0, len(array) - 1, min(_SAMPLE, len(array))).astype(int)) if on_disk else np.asarray(array)
    if rows.dtype.kind not in "biuf":
        raise InputError(f"data: expected numbers in {name}, got entries of type {rows.dtype}")
    if rows.ndim == 1 and rows.size:
        raise InputError(f"data: expected rows (N, ...) in {name}, got the shape {rows.shape}; give one column as x[:, None]")
    if rows.ndim < 2 or rows.size == 0:
        raise InputError(f"data: expected at least one row of at least one number in {name}, got the shape {rows.shape}")
    image = image_layout(rows.shape, rows.dtype, rows, asked.image_shape)
    divisor = _grey_scale(rows, asked.domain, image)
    convert = functools.partial(_floats, name=name, divisor=divisor, missing=bool(asked.missing), image=image)
    rows, schema = _center(name, rows, Schema(image_shape=image and image[0], classes=asked.classes), train)
    x = convert(tensor_of(rows))
    present = x[~x.isnan()] if asked.missing else x
    if present.numel() == 0:
        raise InputError(f"data: expected some numbers in {name}, got NaN alone")
    inferred = _domain(rows if divisor == 1.0 else present.numpy())
    far = inferred == "counts" and bool(present.min() > present.max() / 2)  # from 0, such as years
    domain = asked.domain or (train.domain if train is not None else "real" if far else inferred)
    _check_domain(name, present, inferred, domain, given=asked.domain is not None)
    if on_disk:
        x = replace(array, shape=torch.Size([len(array), *x.shape[1:]])).then(convert)
    return Split(x, None, domain, schema=schema)


def image_layout(
    shape: tuple[int, ...], dtype: Any, values: np.ndarray | None, asked: tuple[int, ...] | None
) -> tuple[tuple[int, ...], bool] | None:
    """The image shape of an array's rows, and whether channels come last; ``None`` for rows that are not images.

    Four dimensions with 1, 3 or 4 channels are images; three are if they are uint8, or from 0 to 1 with sides of 8 or more.
    """
    event = tuple(shape[1:])
    if asked is not None:
        if np.prod(asked) != np.prod(event):
            raise InputError(f"data: expected image_shape as (channels, height, width) of {np.prod(event)} numbers, got {tuple(asked)}")
        last = len(event) == 3 and event != tuple(asked) and tuple(asked) == (event[2], *event[:2])
        return tuple(asked), last
    if len(event) == 3 and (event[0] in _CHANNELS or event[2] in _CHANNELS):
        last = event[0] not in _CHANNELS
        return ((event[2], *event[:2]) if last else event), last
    sides = len(event) == 2 and min(event) >= _SIDE
    if len(event) == 2 and (
        dtype == np.uint8
        or (sides and dtype == np.uint16)
        or (min(event) >= _SIDE and values is not None and 0 <= values.min() and values.max() <= 1)
    ):
        return (1, *event), False
    return None


def _grey_scale(rows: np.ndarray, domain: str | None, image: tuple | None) -> float:
    """The divisor of grey levels: of 8-bit integers, 16-bit images, and wide matrices of integers up to 255."""
    if domain not in (None, "unit"):
        return 1.0
    low, high = rows.min(), rows.max()
    if rows.dtype == np.uint16 and image is not None:
        return 65535.0
    if rows.dtype == np.uint8:
        return 255.0 if high > 1 else 1.0
    wide = np.prod(rows.shape[1:]) >= 64
    return 255.0 if wide and low == 0 and 128 <= high <= 255 and bool((rows == np.round(rows)).all()) else 1.0


def _center(name: str, rows: np.ndarray, schema: Schema, train: Split | None) -> tuple[np.ndarray, Schema]:
    """Subtract, in float64, the mean of columns that vary by less than float32 can resolve; the schema records it."""
    if rows.dtype in (np.float32, np.float16, np.uint8, np.int8, np.int16, np.uint16) or rows.ndim != 2 or schema.image_shape:
        return rows, schema
    if train is not None:
        return (train.schema.centred(rows), train.schema)
    values = rows.astype(np.float64)
    finite = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # about columns without numbers
        spread, largest = np.nan_to_num(np.nanstd(finite, 0)), np.nan_to_num(np.nanmax(np.abs(finite), 0))
    if largest.max(initial=0.0) > 1e18:
        row, column = np.unravel_index(np.nanargmax(np.abs(finite)), finite.shape)
        raise InputError(
            f"data: {name} has {values[row, column]:.4g} in row {row + 1}, column {column}, too large for float32; rescale that column"
        )
    if bool((small := (largest > 0) & (largest < 1e-18)).any()):
        column = int(small.argmax())
        raise InputError(f"data: {name} is at most {largest[column]:.4g} in column {column}, too small for float32; rescale that column")
    lost = (spread > 0) & (largest * 2.0**-24 > 1e-4 * spread)
    if not lost.any():
        return rows, schema
    shifts = np.where(lost, np.round(np.nanmean(finite, 0)), 0.0)
    columns = [Column(f"x{i}", "real", shift=float(shift), missing=bool(np.isnan(values[:, i]).any())) for i, shift in enumerate(shifts)]
    return values - shifts, Schema(columns, schema.image_shape, classes=schema.classes)


def _floats(x: Tensor, name: str, divisor: float, missing: bool, image: tuple[tuple[int, ...], bool] | None) -> Tensor:
    """Rows as floats, images as ``(C, H, W)``; ``ValueError`` for NaN and infinity."""
    x = x.float() / divisor
    infinite = x.isinf()
    if bool(infinite.any()):
        raise InputError(
            f"data: expected finite numbers in {name}, "
            f"got infinity in {int(infinite.flatten(1).any(1).sum())} of {len(x)} rows; drop these rows"
        )
    if not missing and bool(x.isnan().any()):
        raise InputError(
            f"data: expected finite numbers in {name}, "
            f"got NaN in {int(x.isnan().flatten(1).any(1).sum())} of {len(x)} rows; drop or fill them, or use missing=True (--missing true)"
        )
    if image is None:
        return x
    shape, last = image
    return (x.movedim(-1, 1).contiguous() if last else x) if x.dim() == 4 else x.unsqueeze(1) if x.dim() == 3 else x


def _domain(x: np.ndarray) -> Domain:
    x = x[~np.isnan(x)] if x.dtype.kind == "f" else x
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)
    whole = x.dtype.kind != "f" or bool((x == x.round()).all())
    if low < 0 or (high > 1 and not whole):
        return "real"
    if high > 1:
        return "counts"
    return "binary" if whole else "unit"


def _check_domain(name: str, x: Tensor, inferred: Domain, domain: Domain, given: bool):
    allowed = {"binary": {"binary"}, "unit": {"binary", "unit"}, "counts": {"binary", "counts"}, "categories": {"binary", "counts"}}
    if domain != "real" and domain not in allowed:
        raise InputError(f"data: expected domain as one of real, {', '.join(allowed)}, got {domain!r}")
    if domain in allowed and inferred not in allowed[domain]:
        claim = f"was given as {domain}" if given else f"must be {domain} as the training data are"
        raise InputError(
            f"data: {name} {claim}, but its values from {x.min().item():.4g} to {x.max().item():.4g} "
            f"are {inferred}; rescale them or use domain={inferred!r}"
        )


def _check_scale(name: str, key: str, train: Split, other: Split):
    """``ValueError`` for a split on another scale than the training data."""
    x, y = (split.x[:_SAMPLE].double().flatten(1).numpy() for split in (train, other))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # about columns without numbers
        scale = np.nanstd(x, 0)
        far = np.nan_to_num(np.where(scale > 0, np.nanmedian(np.abs(y - np.nanmean(x, 0)), 0) / scale, 0.0))
    worst = int(far.argmax())
    if far[worst] > _FAR:
        spans = [f"{np.nanmin(values[:, worst]):.4g} to {np.nanmax(values[:, worst]):.4g}" for values in (x, y)]
        raise InputError(
            f"data: {name}: {key} is on another scale than train: entry {worst} is {spans[0]} in train and "
            f"{spans[1]} in {key}; rescale both alike"
        )


def _numbered(labels: dict[str, Any]) -> tuple[dict[str, Any], list[str] | None]:
    """Labels that are text as integers, and the names of the classes."""
    arrays = {key: np.asarray(column) for key, column in labels.items()}
    if not any(array.dtype.kind in "OUS" for array in arrays.values()):
        return labels, None
    arrays = {key: array.astype(str) for key, array in arrays.items()}
    classes = np.unique(np.concatenate([array.ravel() for array in arrays.values()]))
    return {key: np.searchsorted(classes, array) for key, array in arrays.items()}, classes.tolist()


def _checked_labels(labels: Any, rows: int, name: str) -> Tensor:
    labels = torch.from_numpy(np.require(labels, requirements="W"))  # copies read-only memory, as pandas 3 gives
    if labels.shape[:1] != (rows,) or labels.dim() > 2:
        raise InputError(f"data: expected a label for each of {rows} rows of {name}, got labels of shape {tuple(labels.shape)}")
    return labels.flatten() if labels.dim() == 2 and labels.shape[1] == 1 else labels
