"""How large the batches of an Arrow file are once they are unpacked, which its headers say and pyarrow does not show.

The format is in https://arrow.apache.org/docs/format/Columnar.html: tables of FlatBuffers (File.fbs, Message.fbs), where a compressed
buffer starts with its size as 8 bytes.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import sizes
from ..checks import short

_MAGIC = b"ARROW1"
_VIEWS = ("string_view", "binary_view")  # several texts may share the same bytes
_NOT_READ = ("run_end_encoded", "list_view", "_union")  # few bytes can stand for any number of values


class _Table:
    """A table of FlatBuffers: its fields are found by a list of offsets."""

    def __init__(self, data: memoryview, at: int):
        self.data, self.at = data, at

    def field(self, number: int) -> int | None:
        """Where a field is, ``None`` where it was left out."""
        fields = self.at - self.read("<i", self.at)
        (size,) = struct.unpack_from("<H", self.data, fields)
        offset = self.read("<H", fields + 4 + 2 * number) if 4 + 2 * number < size else 0
        return self.at + offset if offset else None

    def read(self, kind: str, at: int) -> int:
        """A whole number."""
        if at < 0:
            raise struct.error("an offset before the beginning")
        return struct.unpack_from(kind, self.data, at)[0]

    def number(self, number: int, kind: str) -> int:
        """A field that is a number, 0 where it was left out."""
        at = self.field(number)
        return 0 if at is None else self.read(kind, at)

    def table(self, number: int) -> "_Table | None":
        """A field that is a table."""
        at = self.field(number)
        return None if at is None else _Table(self.data, at + self.read("<I", at))

    def vector(self, number: int, size: int) -> range:
        """Where the entries of a field that is a list of structures of some size are."""
        at = self.field(number)
        if at is None:
            return range(0)
        start = at + self.read("<I", at)
        return range(start + 4, start + 4 + size * self.read("<I", start), size)


def unpacked_size(content: memoryview) -> int:
    """Bytes that all compressed buffers of an Arrow file unpack to.

    Raises:
        ValueError: no such file, or a damaged one.
    """
    try:
        return sum(_sizes(content))
    except struct.error as error:
        raise ValueError(f"a damaged Arrow file ({error})") from error


def _sizes(content: memoryview) -> Iterator[int]:
    if bytes(content[-6:]) != _MAGIC or len(content) < 20:
        raise ValueError("expected an Arrow file, which ends with ARROW1")
    end = len(content) - 10
    footer = _root(content, end - struct.unpack_from("<i", content, end)[0])
    seen = 0
    for number in (2, 3):  # batches of dictionaries, and of rows
        for block in footer.vector(number, 24):
            start, length = footer.read("<q", block), footer.read("<i", block + 8)
            batch = _batch(content, start)
            for buffer in () if batch is None else batch.vector(2, 16):
                seen += 1
                if seen > sizes.ARROW_BUFFERS:
                    raise ValueError(f"expected at most {sizes.ARROW_BUFFERS:,} compressed buffers")
                if batch.read("<q", buffer + 8) > 0:
                    yield max(0, batch.read("<q", start + length + batch.read("<q", buffer)))


def _root(content: memoryview, at: int) -> _Table:
    found = _Table(content, at)
    found.at += found.read("<I", at)
    return found


def _batch(content: memoryview, start: int) -> _Table | None:
    """The header of a batch; ``None`` where its buffers are stored as they are."""
    prefix = 8 if bytes(content[start : start + 4]) == b"\xff\xff\xff\xff" else 4
    message = _root(content, start + prefix)
    batch = message.table(2)
    if batch is not None and message.number(1, "<B") == 2:  # of a dictionary
        batch = batch.table(1)
    early = message.number(0, "<h") < 4 and message.field(4) is not None  # before version 5 the compression was named beside it
    return batch if batch is not None and (early or batch.field(3) is not None) else None


def empty_columns(schema: Any) -> int:
    """Columns whose values are all missing and take no bytes in a file; in memory each is an object of Python."""
    return sum(str(column.type) == "null" for column in schema)


def check_types(schema: Any):
    """``ValueError`` for columns in which few bytes can stand for any number of values, views of text apart: ``text_size`` counts those."""
    for column in schema:
        kinds = [str(column.type), *_inner(column.type)]
        if any(word in kind for kind in kinds for word in _NOT_READ) or any(kind in _VIEWS for kind in kinds[1:]):
            raise ValueError(f"the column {short(column.name)} is of type {short(column.type)}, which is not read; convert it first")


def _inner(kind: Any) -> Iterator[str]:
    """The types inside a type."""
    held = [kind.field(i).type for i in range(kind.num_fields)]
    held += [getattr(kind, name) for name in ("value_type", "storage_type") if hasattr(kind, name) and not held]
    for each in held:
        yield str(each)
        yield from _inner(each)


def text_size(batch: Any) -> int:
    """Characters of all texts in a batch, of which several may share the same bytes."""
    import pyarrow
    from pyarrow import compute

    total = 0
    for column in batch.columns:
        if str(column.type) in _VIEWS:
            total += int(np.frombuffer(column.buffers()[1], "<i4").reshape(-1, 4)[column.offset :][: len(column), 0].sum(dtype=np.int64))
        elif pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
            total += compute.sum(compute.binary_length(column)).as_py() or 0
    return total
