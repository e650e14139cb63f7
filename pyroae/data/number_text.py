"""Long tables of numbers as text, parsed by pyarrow where it is installed: in a third of pandas' time, and with the same result."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .limits import check_size, opened

LONG = 2**25  # bytes of a file from which on it matters
_BLOCK = 2**21  # bytes parsed at a time


def read(path: Path, names: list[str], skip: int, options: dict[str, Any], missing: set[str], limit: float) -> pd.DataFrame | None:
    """A table all of whose cells are numbers or missing; ``None`` where pyarrow is not installed or a cell is something else.

    Args:
        path: of the file, which may be compressed.
        names: of the columns.
        skip: lines before the first row.
        options: of ``pandas.read_csv``: sep, quotechar.
        missing: cells that stand for missing values.
        limit: bytes that the file may take.
    """
    try:
        import pyarrow
        from pyarrow import csv
    except ImportError:
        return None
    pool = pyarrow.system_memory_pool()  # which gives memory back
    reading = csv.ReadOptions(use_threads=False, block_size=_BLOCK, column_names=names, skip_rows=skip)
    parsing = csv.ParseOptions(delimiter=options["sep"], quote_char=options["quotechar"])
    converting = csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.float64()), null_values=sorted(missing))
    try:
        with opened(path, limit) as file:
            lines = 1 + sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b""))
        check_size(8.0 * lines * len(names), limit, path.name)
        table = np.empty((len(names), lines))
        rows = 0
        with opened(path, limit) as file, csv.open_csv(file, reading, parsing, converting, pool) as reader:
            for batch in reader:
                if rows + len(batch) > table.shape[1]:  # lines that end otherwise
                    return None
                for i, column in enumerate(batch.columns):
                    table[i, rows : rows + len(batch)] = column.to_numpy(zero_copy_only=False)
                rows += len(batch)
    except pyarrow.ArrowInvalid:  # text, or rows of unequal length
        return None
    return pd.DataFrame(table[:, :rows].T, columns=names, copy=False)
