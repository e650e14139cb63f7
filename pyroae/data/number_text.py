"""Long tables of numbers as text, parsed in blocks by NumPy: half the time and memory of pandas, same result."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from .limits import check_size, opened

LONG = 2**25  # file size in bytes from which this is used
_BLOCK = 2**21  # bytes parsed at a time


def read(path: Path, names: list[str], skip: int, options: dict[str, Any], missing: set[str], limit: float) -> pd.DataFrame | None:
    """Read a table of numbers; ``None`` if a cell is neither a number nor missing, or if rows differ in length.

    Args:
        path: of the file, which may be compressed.
        names: of the columns.
        skip: lines before the first row.
        options: of ``pandas.read_csv``: sep, quotechar.
        missing: cells that stand for missing values.
        limit: bytes that the file may take.
    """
    with opened(path, limit) as file:
        lines = 1 + sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b""))
    check_size(8.0 * lines * len(names), limit, path.name)
    table, rows = np.empty((len(names), lines)), 0
    with opened(path, limit) as file:
        if b"\r" in b"".join(file.readline() for _ in range(skip)).replace(b"\r\n", b""):  # another line ending
            return None
        for block in _blocks(file):
            values = _parsed(block, len(names), options, missing)
            if values is None or rows + len(values) > lines:
                return None
            table[:, rows : rows + len(values)] = values.T
            rows += len(values)
    return pd.DataFrame(table[:, :rows].T, columns=names, copy=False)


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file in blocks of complete lines, without blank ones."""
    rest = b""
    while block := file.read(_BLOCK):
        end = block.rfind(b"\n") + 1
        if (lines := rest + block[:end]).strip() and end:
            yield lines
        rest = block[end:] if end else rest + block
    if rest.strip():
        yield rest


def _parsed(block: bytes, width: int, options: dict[str, Any], missing: set[str]) -> np.ndarray | None:
    """Rows of numbers ``(rows, width)``; parsed by pandas if cells are missing."""
    try:
        values = np.loadtxt(io.BytesIO(block), delimiter=options["sep"], comments=None, ndmin=2)
        return values if values.shape[1] == width else None
    except ValueError:
        pass
    as_numbers = {"dtype": np.float64, "na_values": sorted(missing), "keep_default_na": False, "index_col": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # cells are dropped
            frame = pd.read_csv(io.BytesIO(block), header=None, sep=options["sep"], quotechar=options["quotechar"], **as_numbers)
    except (ValueError, OverflowError, pd.errors.ParserWarning):  # text
        return None
    return frame.to_numpy() if frame.shape[1] == width else None
