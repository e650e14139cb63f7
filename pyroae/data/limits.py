"""Limits of memory: sizes are read from headers, or counted while unpacking, before memory is allocated."""

import bz2
import gzip
import io
import lzma
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..checks import InputError

LIMIT = 8e9  # bytes
_ORDER = 40  # bytes per row for permutations and sorting
_COLUMN = 20_000  # bytes per column for its values as objects, its kind, and its part of a model
_PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class TooLarge(InputError):
    """Data would take more memory than the caller allows; says how the limit is raised."""


def check_size(size: float, limit: float, what: str, owner: str = "data"):
    """``TooLarge`` if something would take more than ``limit`` bytes of memory; the message begins with ``owner``."""
    if size > limit:
        raise TooLarge(
            f"{owner}: {what} would take {size / 1e9:,.1f} GB of memory, more than the limit of {limit / 1e9:,.1f} GB; "
            f"raise it by limit={1.1 * size:.1e} (--limit)"
        )


def check_unpacked(size: float, limit: float, what: str):
    """``TooLarge`` if what was unpacked so far takes more than ``limit`` bytes."""
    if size > limit:
        raise TooLarge(
            f"data: {what} unpacks to more than the limit of {limit / 1e9:,.1f} GB; raise it by limit={2 * size:.1e} or more (--limit)"
        )


def check_columns(columns: int, limit: float, what: str):
    """``TooLarge`` if the descriptions of so many columns would take more than ``limit`` bytes."""
    check_size(_COLUMN * columns, limit, f"the {columns:,} columns of {what}")


def check_rows(rows: int, limit: float, what: str):
    """``TooLarge`` if a permutation of so many rows would take more than ``limit`` bytes."""
    check_size(_ORDER * rows, limit, f"the order of the {rows:,} rows of {what}")


def is_regular(path: Path) -> bool:
    """Whether a path is a regular file, not a pipe, socket or device, which might never end."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


class Limited(io.RawIOBase):
    """A binary stream that raises ``TooLarge`` once the bytes read from it, times ``times``, exceed ``limit``."""

    def __init__(self, file: BinaryIO, limit: float, name: str, times: float = 1.0):
        self.file, self.read_so_far, self.limit, self.name, self.times = file, 0, limit, name, times

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer) -> int:
        """Read into a buffer and count the bytes."""
        content = self.file.read(len(buffer))
        self.read_so_far += len(content)
        check_unpacked(self.times * self.read_so_far, self.limit, self.name)
        buffer[: len(content)] = content
        return len(content)


@contextmanager
def opened(path: Path, limit: float, times: float = 1.0) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed according to its name; a byte takes ``times`` bytes of memory."""
    check_size(times * path.stat().st_size, limit, str(path))
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
            if len(names) != 1:
                raise ValueError(f"expected one file in {path.name}, got {len(names)}")
            with archive.open(names[0]) as file:
                yield io.BufferedReader(Limited(file, limit, path.name, times), 2**20)
    elif path.suffix in _PACKED:
        with _PACKED[path.suffix](path, "rb") as file:
            yield io.BufferedReader(Limited(file, limit, path.name, times), 2**20)
    else:
        with open(path, "rb") as file:
            yield file
