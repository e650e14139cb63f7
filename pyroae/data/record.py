"""What a run remembers of its data: where they came from, the schema of x, and which rows were in which split."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import schema
from ..files import read_tensors, write_tensors
from .digests import as_tensor, find_rows, row_digests
from .named import NAMED
from .rows import Rows
from .schema import Schema
from .splits import DataSet, Split

_FILE, _FORMAT = "data.safetensors", "pyroae-data-1"
_SAMPLE = 10_000  # rows on disk whose digests are compared


def resolved(source: str) -> str:
    """The absolute path of a file or folder; the name of a data set, whatever lies in the current folder."""
    return str(Path(source).resolve()) if source not in NAMED and os.path.exists(source) else source


def save(folder: Path, data: DataSet, source: str):
    """Write ``data.safetensors``: the schema of x, and digests of the rows of every split, before any binarization."""
    digests = {name: _digests(split) for name, split in data.splits.items()}
    content = {
        "format": _FORMAT,
        "source": source,
        "on_disk": any(isinstance(split.x, Rows) for split in data.splits.values()),
        "schema": {"class": "schemas.Schema", **data.schema.arguments},
    }
    write_tensors(folder / _FILE, content, {name: as_tensor(values) for name, values in digests.items()})


def is_there(folder: Path) -> bool:
    """Whether a run remembers its data."""
    return (folder / _FILE).is_file()


def read(folder: Path) -> tuple[dict[str, Any], Schema, dict[str, np.ndarray]]:
    """What ``save`` wrote: the content, the schema and the digests by split.

    Raises:
        ValueError: a damaged file.
    """
    content, tensors = read_tensors(folder / _FILE, _FORMAT)
    schema.check_size(content, f"{folder / _FILE}")
    found = schema.made(schema.read(content.get("schema"), Schema, f"{folder / _FILE}: schema"))
    if not all(values.dtype is torch.int64 and values.dim() == 1 for values in tensors.values()) or not {"train", "test"} <= tensors.keys():
        raise ValueError(f"{folder / _FILE}: expected the digests of train and test as whole numbers; the file is damaged")
    return content, found, {name: values.numpy().view(np.uint64) for name, values in tensors.items()}


def restored(folder: Path, now: DataSet, owner: str, needed: tuple[str, ...]) -> DataSet:
    """The run's own splits again, from all rows that its source holds now; rows that are in none of them are left out and named.

    Args:
        folder: of the run.
        now: the source as it is now, in whatever splits, with the run's schema, not binarized.
        owner: the command that asks.
        needed: splits of which every row must still be there.

    Raises:
        ValueError: rows of a needed split are not there any more.
    """
    content, schema_then, digests = read(folder)
    if content.get("on_disk"):
        return _same_on_disk(folder, now, digests)
    rows = _named_as(together(now), schema_then)
    present = row_digests(rows.x)
    found = {name: find_rows(values, present) for name, values in digests.items()}
    lost = {name: int((at < 0).sum()) for name, at in found.items()}
    every = find_rows(np.concatenate(list(digests.values())), present)
    new = len(present) - int((every >= 0).sum())
    if any(lost[name] for name in needed if name in lost):
        gone = ", ".join(f"{count} of {len(digests[name])} {name} rows" for name, count in lost.items() if count)
        raise ValueError(
            f"{owner}: {content.get('source')} has changed since {folder} was trained: {gone} are not there any more"
            f"{f', {new} rows are new' if new else ''}; restore the file, "
            + (
                "train a new run"
                if "train" in needed
                else f"or score what it holds now, training rows left out: --data {content.get('source')}"
            )
        )
    splits = {name: rows[torch.from_numpy(at[at >= 0])] for name, at in found.items()}
    note = f"{new} rows of the source are new since this run was trained and are left out" if new else ""
    return replace(now, **splits, **({} if "validation" in splits else {"validation": None}), note=note)


def unseen(folder: Path, rows: Split) -> tuple[Split, int]:
    """Those of some rows that the run was not trained or validated on, and how many others were left out."""
    _, _, digests = read(folder)
    known = np.concatenate([digests[name] for name in ("train", "validation") if name in digests])
    fresh = ~np.isin(row_digests(rows.x), known)
    return rows[torch.from_numpy(np.flatnonzero(fresh))], int((~fresh).sum())


def _digests(split: Split) -> np.ndarray:
    """Of all rows in memory, of some of those on disk."""
    if isinstance(split.x, Rows):
        return row_digests(split.x[torch.linspace(0, len(split) - 1, min(_SAMPLE, len(split))).long()])
    return row_digests(split.x)


def together(data: DataSet) -> Split:
    """All rows of a data set as one split."""
    splits = list(data.splits.values())
    labels = None if any(split.labels is None for split in splits) else torch.cat([split.labels for split in splits])
    return replace(splits[0], x=torch.cat([split.x[:] for split in splits]), labels=labels)


def _named_as(rows: Split, then: Schema) -> Split:
    """The rows with the numbers that their classes had when the run was trained, -1 for new classes."""
    now = rows.schema.classes
    if rows.labels is None or now == then.classes or not (now and then.classes):
        return rows
    numbers = torch.tensor([then.classes.index(name) if name in then.classes else -1 for name in now])
    return replace(rows, labels=numbers[rows.labels], schema=then)


def _same_on_disk(folder: Path, now: DataSet, digests: dict[str, np.ndarray]) -> DataSet:
    for name, split in now.splits.items():
        if name not in digests or not np.array_equal(_digests(split), digests[name]):
            raise ValueError(
                f"{folder}: its data have changed since it was trained: rows of {name} are others; restore them, or train a new run"
            )
    return now
