"""The folder of a run: creating it, and opening its model and data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .. import data as datasets
from .. import schema as plain
from .. import storage
from ..data import DataSet, Schema, Split, binarized, record
from ..data.limits import LIMIT
from ..files import atomic, refuse_links
from ..model.autoencoder import Autoencoder
from .output import as_json, command
from .settings import arguments_of, read_run


def new_folder(path: str | None, name: str) -> Path:
    """The requested folder, which must be new or empty, or by default a new ``runs/NAME-1``, ``runs/NAME-2``, ..."""
    if path is not None:
        folder = Path(path)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"train: {folder} exists and is not empty; nothing is ever overwritten, "
                "so name another folder with --out or remove that one"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    number = 1
    while True:
        folder = Path("runs") / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def write_json(path: Path, content: dict[str, Any]):
    """Write a JSON file completely or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(as_json(content))


def open_model(run: str, owner: str, limit: float = LIMIT) -> tuple[Autoencoder, dict[str, Any]]:
    """A run's model and settings; ``ValueError`` if it is not a run folder, or if the model takes more than ``limit`` bytes."""
    folder = Path(run)
    try:
        refuse_links(folder)
        settings = plain.made(read_run(folder)) | {"limit": limit}
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from error
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{owner}: {run} was stopped before its model was saved; {command()} train --resume {run} continues it")
    return storage.load(folder / "model.safetensors", limit=limit if limit > LIMIT else None).float(), settings


def open_run(run: str, owner: str, limit: float = LIMIT) -> tuple[Autoencoder, DataSet]:
    """A run's model and data; ``ValueError`` if it is not a run folder."""
    ae, settings = open_model(run, owner, limit)
    raw = load_data(settings, run, owner, ("test",))
    return ae, binarized(raw, settings["binarize"]) if settings["binarize"] else raw


def open_on_file(run: str, source: str, limit: float = LIMIT) -> tuple[Autoencoder, DataSet]:
    """A run's model, with the rows of another file as its test data, without those that it was trained on."""
    ae, settings = open_model(run, "evaluate", limit)
    rows, _ = read_rows(source, ae, settings | {"binarize": None})
    excluded = 0
    if record.is_there(Path(run)):
        rows, excluded = record.unseen(Path(run), rows)
    if len(rows) == 0:
        raise ValueError(f"evaluate: the run was trained on all {excluded} rows of {source}; give rows that it was not trained on")
    note = f"{excluded} rows that the run was trained on are left out" if excluded else ""
    dataset = DataSet(Path(source).name.partition(".")[0], rows, rows, note=note)
    how = "static" if settings["binarize"] == "dynamic" else settings["binarize"]
    return ae, binarized(dataset, how) if how else dataset


def load_data(settings: dict[str, Any], run: str | Path | None, owner: str, needed: tuple[str, ...]) -> DataSet:
    """The data that the settings name, not binarized; for a run that recorded its data, the same rows in the same splits.

    Raises:
        ValueError: data that cannot be read, or a needed split some of whose rows are missing.
    """
    arguments: dict[str, Any] = arguments_of(datasets.load, settings) | {"binarize": None}
    if run is None or not record.is_there(Path(run)):
        return datasets.load(**arguments)
    schema = record.read(Path(run))[1]
    if schema.columns:
        arguments |= {"schema": schema, "labels": schema.label}
    return record.restored(Path(run), datasets.load(**arguments), owner, needed)


def read_inputs(source: str, ae: Autoencoder, settings: dict[str, Any]) -> Split:
    """All rows of a file with the inputs of the encoder of a run's model."""
    options = {name: settings[name] for name in ("na", "csv", "limit") if settings[name]}
    return datasets.rows(source, schema_of(ae).inputs or Schema(), **options)[0]


def read_rows(source: str, ae: Autoencoder, settings: dict[str, Any]) -> tuple[Split, pd.DataFrame | None]:
    """All rows of a file, encoded as the run's own data were, and the table itself if it is one."""
    options = {name: settings[name] for name in ("na", "csv", "limit", "domain") if settings[name]}
    rows, frame = datasets.rows(source, schema_of(ae), **options)
    if settings.get("binarize"):
        generator = torch.Generator().manual_seed(0)
        x = rows.x[:]
        x = (x > 0.5).float() if settings["binarize"] == "threshold" else torch.bernoulli(x, generator=generator)
        rows = replace(rows, x=x, domain="binary")
    return rows, frame


def schema_of(ae: Autoencoder) -> Schema:
    """The schema of the model's data; an empty one of a model without it."""
    return ae.schema if ae.schema is not None else Schema()
