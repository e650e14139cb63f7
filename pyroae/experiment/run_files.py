"""The scores and the history that a run wrote, read back: the folder may come from somebody else."""

import contextlib
import csv
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.limits import TooLarge, check_size
from ..files import read_json

_NUMBER = 12.0  # bytes for each byte of a table: a number is a digit and a comma at least, and is in a list and in a tensor
_COLUMN = 200.0  # bytes for each column, its numbers apart


@contextlib.contextmanager
def naming(*paths: Path) -> Iterator[None]:
    """``ValueError`` that names the files, where what was written there is not what is read."""
    try:
        yield
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError, RecursionError, csv.Error) as error:
        if isinstance(error, TooLarge) or str(error).startswith("report: "):
            raise
        names, why = " or ".join(path.name for path in paths), f"{type(error).__name__}: {error}"
        raise ValueError(f"report: in {paths[0].parent} {names} is damaged or written by another program ({why})") from error


def read_scores(path: Path) -> dict[str, Any]:
    """A run's JSON file; empty where it is not there, as in a run that was stopped before its scores."""
    with naming(path):
        return read_json(path) if path.is_file() else {}


def read_columns(path: Path, limit: float, times: float = 1.0) -> dict[str, Tensor]:
    """The columns of a CSV file of numbers in float64, empty cells as NaN; nothing where it is absent or has no rows.

    Args:
        path: the file.
        limit: bytes of memory.
        times: how many times as much the caller makes of the numbers.

    Raises:
        ValueError: a file that is damaged, or that would take more than ``limit`` bytes of memory.
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
