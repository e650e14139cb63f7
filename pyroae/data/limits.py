"""How large files may become in memory: looked up in headers, or counted while unpacking, before memory is taken."""

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

LIMIT = 8e9  # bytes
_ORDER = 40  # bytes for each row: a permutation, its parts and their sorting
_PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def check_size(size: float, limit: float, what: str):
    """``ValueError`` where something would take more than ``limit`` bytes of memory."""
    if size > limit:
        raise ValueError(
            f"data: {what} would take {size / 1e9:,.1f} GB of memory, more than the limit of {limit / 1e9:,.1f} GB; "
            f"raise it by limit={1.1 * size:.1e} (--limit)"
        )


def check_unpacked(size: float, limit: float, what: str):
    """``ValueError`` where what has been unpacked so far takes more than ``limit`` bytes."""
    if size > limit:
        raise ValueError(f"data: {what} unpacks to more than the limit of {limit / 1e9:,.1f} GB; raise it by limit=... (--limit)")


def check_rows(rows: int, limit: float, what: str):
    """``ValueError`` where rows are so many that their order alone, which is drawn in memory, would take more than ``limit``."""
    check_size(_ORDER * rows, limit, f"the order of the {rows:,} rows of {what}")


def is_regular(path: Path) -> bool:
    """Whether a path is a file of data: no pipe, socket or device, reading which may never end."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


class Limited(io.RawIOBase):
    """A binary stream that raises ``ValueError`` once more than ``limit`` bytes were read from it."""

    def __init__(self, file: BinaryIO, limit: float, name: str):
        self.file, self.left, self.limit, self.name = file, limit, limit, name

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer) -> int:
        """Read into a buffer, and count."""
        content = self.file.read(len(buffer))
        self.left -= len(content)
        check_unpacked(self.limit - self.left, self.limit, self.name)
        buffer[: len(content)] = content
        return len(content)


@contextmanager
def opened(path: Path, limit: float) -> Iterator[BinaryIO]:
    """A file for reading, unpacked where its name says that it is packed."""
    check_size(path.stat().st_size, limit, str(path))
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
            if len(names) != 1:
                raise ValueError(f"expected one file in {path.name}, got {len(names)}")
            with archive.open(names[0]) as file:
                yield io.BufferedReader(Limited(file, limit, path.name), 2**20)
    elif path.suffix in _PACKED:
        with _PACKED[path.suffix](path, "rb") as file:
            yield io.BufferedReader(Limited(file, limit, path.name), 2**20)
    else:
        with open(path, "rb") as file:
            yield file
