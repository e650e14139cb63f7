"""Reading the scores and the history in a run folder, which may come from somebody else."""

import contextlib
import csv
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import InputError
from ..data.limits import check_size
from ..files import read_json

_NUMBER = 12.0  # bytes of memory per byte of a table: a number is at least a digit and a comma, and is held twice
_COLUMN = 200.0  # bytes of memory per column, besides its numbers


@contextlib.contextmanager
def naming(*paths: Path) -> Iterator[None]:
    """Turns errors about the content of files into a ``ValueError`` that names them."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError, RecursionError, csv.Error) as error:
        names, why = " or ".join(path.name for path in paths), f"{type(error).__name__}: {error}"
        raise InputError(f"report: in {paths[0].parent} {names} is damaged or written by another program ({why})") from error


def read_scores(path: Path) -> dict[str, Any]:
    """A run's JSON file; empty if it does not exist, as in a run that was stopped early."""
    with naming(path):
        return read_json(path) if path.is_file() else {}


def read_columns(path: Path, limit: float, times: float = 1.0) -> dict[str, Tensor]:
    """The columns of a CSV file of numbers as float64, with NaN for empty cells; empty if there is no such file or it has no rows.

    Args:
        path: the file.
        limit: bytes of memory.
        times: memory that the caller needs, relative to that of the columns.

    Raises:
        ValueError: a damaged file, or one that would take more than ``limit`` bytes of memory.
    """
    if not path.is_file():
        return {}
    with naming(path), open(path, newline="") as file:
        check_size(times * _NUMBER * path.stat().st_size, limit, str(path), "report")
        rows = csv.reader(file)
        names = next(rows, [])
        check_size(_COLUMN * len(names), limit, f"the {len(names):,} columns of {path}", "report")
        columns = [array("d") for _ in names]
        for number, row in enumerate(rows, 1):
            if len(row) != len(names):
                raise ValueError(f"expected {len(names)} values in row {number}, got {len(row)}")
            for column, value in zip(columns, row):
                column.append(float(value or "nan"))
        return {name: torch.tensor(column, dtype=torch.float64) for name, column in zip(names, columns) if column}
