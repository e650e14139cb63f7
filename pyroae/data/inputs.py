"""Arrays, tables, tensors, splits, Datasets and DataLoaders as the tensors that a program is called with."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from . import arrays, readers, tables
from .limits import LIMIT
from .rows import Rows
from .schema import Schema
from .splits import FEW, DataSet, Split

Column = Tensor | Rows
LOOK = 100_000  # rows from which mean and scale of columns are computed
_WHITE = {"uint8": 255, "uint16": 65535}  # the largest grey level
_LOST, _COARSE = 5.0, 500.0  # float32 steps per standard deviation below which there is an error or a warning


@dataclass(frozen=True)
class Inputs:
    """Data as tensors.

    Args:
        x: ``(N, *event)``.
        y: labels or covariates, or ``None``.
        schema: the columns of x, if known.
        draw: a function applied to x at every use, such as dynamic binarization.
        u: what the encoder sees instead of x, or ``None``.
    """

    x: Column
    y: Column | None = None
    schema: Schema | None = None
    draw: Callable[[Tensor], Tensor] | None = None
    u: Column | None = None


@dataclass(frozen=True)
class Wanted:
    """What a model expects of its data.

    Args:
        schema: the columns that it was trained on; tables are reordered accordingly.
        dtype: the floating-point type; ``None`` leaves tensors unchanged.
        event_shape: of one x; the channels of images are moved to the front.
        bounded: tells whether x is in [0, 1], so that 8-bit and 16-bit grey levels are divided by their maximum.
        labels: whether a tuple has labels or covariates y after x.
        inputs: what is expected of the inputs u of the encoder, at the end of a tuple; ``None`` for an encoder of x.
    """

    schema: Schema | None = None
    dtype: torch.dtype | None = None
    event_shape: torch.Size | None = None
    bounded: Callable[[], bool] | None = None
    labels: bool = True
    inputs: "Wanted | None" = None


ANYTHING = Wanted()
_LIKELIHOOD = "bounded", "measured", "measure", "preprocess"  # of its class, by which a likelihood is known


def rows_to_look_at(x: Column) -> int:
    """The number of rows for mean and scale: at most 100,000, and at most 100 MB of rows on disk."""
    return min(LOOK, len(x)) if isinstance(x, Tensor) else min(LOOK, max(1, int(FEW * len(x) // x.nbytes)))


def likelihood_of(model: Any) -> Any:
    """The likelihood of a model that says by it what x is, as those of ``pa.Autoencoder`` do; ``None`` for all others."""
    part = getattr(model, "likelihood", None)
    return part if isinstance(part, nn.Module) and all(hasattr(type(part), name) for name in _LIKELIHOOD) else None


def wanted_by(model: Any) -> Wanted:
    """What a model expects; nothing is known for a plain function."""
    likelihood = likelihood_of(model)
    takes_inputs = getattr(model, "takes_inputs", False) is True
    labels = getattr(model, "takes_labels", True) or not takes_inputs
    if not isinstance(model, nn.Module) or likelihood is None:
        return Wanted(labels=labels, inputs=ANYTHING if takes_inputs else None)
    dtypes = (p.dtype for p in itertools.chain(model.parameters(), model.buffers()) if p.is_floating_point())
    dtype, schema = next(dtypes, torch.get_default_dtype()), getattr(model, "schema", None)
    seen = None
    if takes_inputs:
        seen = Wanted(schema and schema.inputs, dtype, model.inputs.event_shape, lambda: model.inputs.bounded)
    return Wanted(schema, dtype, likelihood.event_shape, lambda: likelihood.bounded, labels, seen)


def read(data: Any, wanted: Wanted = ANYTHING) -> Inputs:
    """Data as tensors.

    Raises:
        ValueError: another type, no rows, columns that are missing, or values that float32 cannot tell apart.
    """
    if isinstance(data, DataSet):
        raise ValueError(f"expected one split of the data set {data.name!r}: .train to fit, or .test to score")
    if isinstance(data, Split):
        return _of_split(data, wanted)
    if isinstance(data, (tuple, list)) and len(data) > 0 and not np.isscalar(data[0]):
        return _of_pair(data, wanted)
    if isinstance(data, (Dataset, DataLoader)) and not hasattr(data, "to_pandas"):
        return _of_pair(gathered(data), wanted)
    if isinstance(data, Rows):
        return Inputs(data, schema=wanted.schema)
    if (frame := readers.as_frame(data)) is not None:
        if wanted.schema is None or wanted.schema.columns is None:
            return _of_split(tables.whole("table", frame, tables.TableOptions()), wanted)
        return _of_split(tables.encoded(frame, wanted.schema), wanted)
    return Inputs(cast(data, wanted), schema=wanted.schema)


def _of_split(split: Split, wanted: Wanted) -> Inputs:
    ours, theirs = wanted.schema, split.schema
    if ours is not None and ours.columns and theirs.columns and ours.columns != theirs.columns:
        split = tables.encoded(split.frame(), ours)  # columns in another order, other categories
    x = split.x if isinstance(split.x, Rows) else cast(split.x, wanted)
    u = None if split.inputs is None else _of_split(split.inputs, wanted.inputs or ANYTHING).x
    return Inputs(x, split.labels, split.schema, split.draw if split.dynamic else None, u)


def _of_pair(columns: Iterable[Any], wanted: Wanted) -> Inputs:
    x, *rest = columns
    inputs = read(x, wanted)
    names = ["y"] * wanted.labels + ["u"] * (wanted.inputs is not None)
    if len(rest) > len(names):
        expected = "x, or x and labels y" if wanted.inputs is None else "x, labels y and inputs u" if wanted.labels else "x and inputs u"
        raise ValueError(f"expected {expected}, got {1 + len(rest)} columns")
    beside = dict(zip(names, rest))
    y = labels(beside["y"], wanted) if "y" in beside else inputs.y
    u = read(beside["u"], wanted.inputs or ANYTHING).x if "u" in beside else inputs.u
    for name, column in (("y", y), ("u", u)):
        if column is not None and column.shape[:1] != inputs.x.shape[:1]:
            shapes = tuple(inputs.x.shape), tuple(column.shape)
            raise ValueError(f"expected x and {name} with the same number of rows, got the shapes {shapes[0]} and {shapes[1]}")
    return Inputs(inputs.x, y, inputs.schema, inputs.draw, u)


def labels(y: Any, wanted: Wanted = ANYTHING) -> Column:
    """Labels or covariates as a tensor; integers are kept, other numbers get the model's dtype."""
    if isinstance(y, Rows):
        return y
    if isinstance(y, (list, tuple)) or hasattr(y, "to_numpy"):
        y = np.asarray(y)
    if isinstance(y, np.ndarray) and y.dtype.kind in "OUS" and wanted.schema is not None and wanted.schema.classes:
        y = wanted.schema.class_numbers(y)
    y = cast(y, Wanted(dtype=None))
    return y.to(wanted.dtype) if y.is_floating_point() and wanted.dtype is not None else y


def gathered(data: Dataset | DataLoader) -> list[Tensor]:
    """All examples of a Dataset or a DataLoader, in order, columns as tensors.

    Raises:
        ValueError: there are no examples, or they are not tensors.
    """
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        loader = DataLoader(data.dataset, data.batch_size or 256, collate_fn=data.collate_fn if data.batch_size else None)
    else:
        loader = data if isinstance(data, DataLoader) else DataLoader(data, 256)
    with torch.random.fork_rng(devices=[]):  # a loader draws a seed for its workers
        batches = [tuple(batch) if isinstance(batch, (list, tuple)) else (batch,) for batch in batches_of(loader)]
    if not batches:
        raise ValueError(f"expected at least one example, got none from the {type(data).__name__}")
    if not all(isinstance(column, Tensor) for column in batches[0]):
        raise ValueError(f"expected examples x, or (x, y), as tensors, got {' and '.join(type(c).__name__ for c in batches[0])}")
    return [torch.cat(columns) for columns in zip(*batches)]


def batches_of(loader: DataLoader) -> Iterator[Any]:
    """The batches of a DataLoader; ``ValueError`` if its examples cannot be collated."""
    try:
        yield from loader
    except TypeError as error:
        raise ValueError(
            f"expected examples x, or (x, y), as tensors from the {type(loader.dataset).__name__}; for images use "
            f"transform=torchvision.transforms.ToTensor(): {error}"
        ) from error


def cast(data: Any, wanted: Wanted) -> Tensor:
    """One array or tensor in the model's layout and dtype.

    Raises:
        ValueError: no array of numbers, or numbers that float32 cannot tell apart.
    """
    if isinstance(data, Tensor) and data.layout is torch.strided and data.is_floating_point() and _is_native(data, wanted):
        return _turned(data.to(wanted.dtype), wanted)
    if not (isinstance(data, (Tensor, np.ndarray)) or hasattr(data, "toarray")):
        raise ValueError(
            "expected data as an array, a tensor (N, *event), a DataFrame, a tuple (x, y), a split such as pa.data.load(...).train, "
            f"a Dataset or a DataLoader, got {type(data).__name__}"
        )
    if isinstance(data, Tensor) and data.layout is torch.strided and wanted.dtype is None:
        return data.detach()
    x = _tensor(data, wanted)
    if wanted.dtype is None:
        return x.to(torch.get_default_dtype()) if x.is_floating_point() else x
    white = _WHITE.get(str(data.dtype).removeprefix("torch."))
    if white and bool(wanted.bounded is not None and wanted.bounded()) and bool((x > 1).any()):
        x = x.to(wanted.dtype) / white
    return _turned(x.to(wanted.dtype), wanted)


def _is_native(data: Tensor, wanted: Wanted) -> bool:
    """Whether a tensor only needs a change of dtype, which is differentiable."""
    if data.dtype is not torch.float64 or wanted.dtype is torch.float64:
        return wanted.dtype is not None
    if wanted.dtype is None or (wanted.schema is not None and wanted.schema.is_shifted):
        return False
    _check_precision(data.detach().cpu().numpy())
    return True


def _tensor(data: Any, wanted: Wanted) -> Tensor:
    device = data.device if isinstance(data, Tensor) else None
    array = arrays.as_array(data, LIMIT)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"expected numbers, got an array of {array.dtype}; give a DataFrame, whose columns may hold text")
    if wanted.schema is not None and array.dtype in (np.float64, np.int64):
        array = wanted.schema.centred(array)
    if wanted.dtype is torch.float32 and array.dtype in (np.float64, np.int64, np.uint64, np.int32, np.uint32):
        _check_precision(array)
    native = array.dtype.newbyteorder("=")
    native = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}.get(native.name, native)
    tensor = torch.from_numpy(np.require(array, native, ["C", "W"]))  # copies read-only memory
    return tensor.to(device) if device is not None else tensor


def _check_precision(array: np.ndarray):
    """``ValueError`` for columns that vary by less than float32 can resolve; a warning if its resolution is coarse."""
    x = array.reshape(len(array), -1).astype(np.float64)
    if not x.size:
        return
    x = np.where(np.isfinite(x), x, np.nan)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # about columns without numbers
        spread, largest = np.nanstd(x, 0), np.nanmax(np.abs(x), 0)
        steps = np.where(spread > 0, spread / (largest * 2.0**-24), np.inf)
    worst = int(np.nanargmin(np.where(np.isnan(steps), np.inf, steps)))
    text = f"entry {worst} of x is {largest[worst]:.6g} in size with a standard deviation of {spread[worst]:.3g}"
    if steps[worst] < _LOST:
        raise ValueError(f"{text}: float32 cannot distinguish its values; load it with pa.data.load, which subtracts the mean first")
    if steps[worst] < _COARSE:
        warnings.warn(f"{text}, which float32 rounds to {steps[worst]:.0f} steps; pa.data.load subtracts the mean first", stacklevel=2)


def _turned(x: Tensor, wanted: Wanted) -> Tensor:
    """Images with channels last or without channels as ``(C, H, W)``, if the model expects that."""
    event, image = wanted.event_shape, len(wanted.event_shape or ()) == 3
    if not image or x.dim() < 3 or x.shape[1:] == event:
        return x
    if x.dim() == 4 and x.shape[1:] == torch.Size([*event[1:], event[0]]):
        return x.movedim(-1, 1).contiguous()
    return x.unsqueeze(1) if x.dim() == 3 and event[0] == 1 and x.shape[1:] == event[1:] else x
