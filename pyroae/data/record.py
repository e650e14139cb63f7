"""The record of a run's data: their source, the schema of x, and digests of the rows in each split."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import schema
from ..files import read_tensors, write_tensors
from .digests import as_tensor, combined, find_rows, row_digests
from .named import NAMED
from .schema import Schema
from .splits import DataSet, Split

_FILE, _FORMAT = "data.safetensors", "pyroae-data-1"
_SAMPLE = 10_000  # rows on disk whose digests are compared


def resolved(source: str) -> str:
    """The absolute path of a file or folder; names of data sets are not changed."""
    return str(Path(source).resolve()) if source not in NAMED and os.path.exists(source) else source


def save(folder: Path, data: DataSet, source: str):
    """Write ``data.safetensors``: the schema of x, and digests of the rows of every split, before any binarization."""
    digests = {name: _digests(split) for name, split in data.splits.items()}
    content = {
        "format": _FORMAT,
        "source": source,
        "on_disk": any(split.on_disk for split in data.splits.values()),
        "schema": data.schema.as_dict(),
    }
    write_tensors(folder / _FILE, content, {name: as_tensor(values) for name, values in digests.items()})


def is_there(folder: Path) -> bool:
    """Whether a run has such a record."""
    return (folder / _FILE).is_file()


def read(folder: Path) -> tuple[dict[str, Any], Schema, dict[str, np.ndarray]]:
    """What ``save`` wrote: the content, the schema and the digests by split.

    Raises:
        ValueError: a damaged file.
    """
    content, tensors = read_tensors(folder / _FILE, _FORMAT)
    schema.check_size(content, f"{folder / _FILE}")
    x_schema = schema.made(schema.read(content.get("schema"), Schema, f"{folder / _FILE}: schema"))
    if not all(values.dtype is torch.int64 and values.dim() == 1 for values in tensors.values()) or not {"train", "test"} <= tensors.keys():
        raise ValueError(f"{folder / _FILE}: expected the digests of train and test as integers; the file is damaged")
    return content, x_schema, {name: values.numpy().view(np.uint64) for name, values in tensors.items()}


def restored(folder: Path, source: DataSet, owner: str, needed: tuple[str, ...]) -> DataSet:
    """The run's splits, restored from the rows that its source has now; other rows are left out, with a note.

    Args:
        folder: of the run.
        source: the source as it is now, in any splits, with the run's schema, not binarized.
        owner: the command, for messages.
        needed: splits of which no row may be missing.

    Raises:
        ValueError: rows of a needed split are missing.
    """
    content, x_schema, digests = read(folder)
    if content.get("on_disk"):
        return _unchanged_on_disk(folder, source, digests)
    rows = _with_classes_of(all_rows(source), x_schema)
    present = _digests(rows)
    positions = {name: find_rows(values, present) for name, values in digests.items()}
    missing = {name: int((at < 0).sum()) for name, at in positions.items()}
    recorded = find_rows(np.concatenate(list(digests.values())), present)
    new = len(present) - int((recorded >= 0).sum())
    if any(missing[name] for name in needed if name in missing):
        gone = ", ".join(f"{count} of {len(digests[name])} {name} rows" for name, count in missing.items() if count)
        raise ValueError(
            f"{owner}: {content.get('source')} has changed since {folder} was trained: {gone} are missing"
            f"{f', {new} rows are new' if new else ''}; restore the file, "
            + ("train a new run" if "train" in needed else f"or score its rows without the training rows: --data {content.get('source')}")
        )
    splits = {name: rows[torch.from_numpy(at[at >= 0])] for name, at in positions.items()}
    note = f"{new} rows of the source are new since this run was trained and are left out" if new else ""
    return replace(source, **splits, **({} if "validation" in splits else {"validation": None}), note=note)


def unseen(folder: Path, rows: Split) -> tuple[Split, int]:
    """The rows that the run was not trained or validated on, and the number of the others."""
    _, _, digests = read(folder)
    known = np.concatenate([digests[name] for name in ("train", "validation") if name in digests])
    unseen_rows = ~np.isin(_digests(rows), known)
    return rows[torch.from_numpy(np.flatnonzero(unseen_rows))], int((~unseen_rows).sum())


def _digests(split: Split) -> np.ndarray:
    """Digests of all rows in memory, or of a sample of rows on disk; inputs of the encoder are part of a row."""
    if split.on_disk:
        split = split[torch.linspace(0, len(split) - 1, min(_SAMPLE, len(split))).long()]
    if split.inputs is None:
        return row_digests(split.x[:])
    return combined(row_digests(split.x[:]), row_digests(split.inputs.x[:]))


def all_rows(data: DataSet) -> Split:
    """All rows of a data set as one split."""
    splits = list(data.splits.values())
    labels = None if any(split.labels is None for split in splits) else torch.cat([split.labels for split in splits])
    seen = [split.inputs for split in splits if split.inputs is not None]
    inputs = replace(seen[0], x=torch.cat([split.x[:] for split in seen])) if seen else None
    return replace(splits[0], x=torch.cat([split.x[:] for split in splits]), labels=labels, inputs=inputs)


def _with_classes_of(rows: Split, x_schema: Schema) -> Split:
    """The rows with labels numbered as in the run's schema, -1 for new classes."""
    classes = rows.schema.classes
    if rows.labels is None or classes == x_schema.classes or not (classes and x_schema.classes):
        return rows
    numbers = torch.tensor([x_schema.classes.index(name) if name in x_schema.classes else -1 for name in classes])
    return replace(rows, labels=numbers[rows.labels], schema=x_schema)


def _unchanged_on_disk(folder: Path, source: DataSet, digests: dict[str, np.ndarray]) -> DataSet:
    for name, split in source.splits.items():
        if name not in digests or not np.array_equal(_digests(split), digests[name]):
            raise ValueError(
                f"{folder}: its data have changed since it was trained: rows of {name} differ; restore them, or train a new run"
            )
    return source
