"""The uncompressed size of an Arrow file, read from its headers, since pyarrow does not report it.

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
_NOT_READ = ("run_end_encoded", "list_view", "_union")  # a few bytes can represent any number of values


class _Table:
    """A FlatBuffers table: its fields are at a list of offsets."""

    def __init__(self, data: memoryview, at: int):
        self.data, self.at = data, at

    def field(self, number: int) -> int | None:
        """The position of a field; ``None`` if it is absent."""
        fields = self.at - self.read("<i", self.at)
        (size,) = struct.unpack_from("<H", self.data, fields)
        offset = self.read("<H", fields + 4 + 2 * number) if 4 + 2 * number < size else 0
        return self.at + offset if offset else None

    def read(self, kind: str, at: int) -> int:
        """An integer."""
        if at < 0:
            raise struct.error("an offset before the beginning")
        return struct.unpack_from(kind, self.data, at)[0]

    def number(self, number: int, kind: str) -> int:
        """An integer field; 0 if it is absent."""
        at = self.field(number)
        return 0 if at is None else self.read(kind, at)

    def table(self, number: int) -> "_Table | None":
        """A field that is a table, or ``None``."""
        at = self.field(number)
        return None if at is None else _Table(self.data, at + self.read("<I", at))

    def vector(self, number: int, size: int) -> range:
        """The positions of the entries of a field that is a list of structures."""
        at = self.field(number)
        if at is None:
            return range(0)
        start = at + self.read("<I", at)
        return range(start + 4, start + 4 + size * self.read("<I", start), size)


def unpacked_size(content: memoryview) -> int:
    """The uncompressed bytes of all compressed buffers of an Arrow file.

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
    buffers = 0
    for number in (2, 3):  # batches of dictionaries, and of rows
        for block in footer.vector(number, 24):
            start, length = footer.read("<q", block), footer.read("<i", block + 8)
            batch = _batch(content, start)
            for buffer in () if batch is None else batch.vector(2, 16):
                buffers += 1
                if buffers > sizes.ARROW_BUFFERS:
                    raise ValueError(f"expected at most {sizes.ARROW_BUFFERS:,} compressed buffers")
                if batch.read("<q", buffer + 8) > 0:
                    yield max(0, batch.read("<q", start + length + batch.read("<q", buffer)))


def _root(content: memoryview, at: int) -> _Table:
    root = _Table(content, at)
    root.at += root.read("<I", at)
    return root


def _batch(content: memoryview, start: int) -> _Table | None:
    """The header of a batch; ``None`` if its buffers are not compressed."""
    prefix = 8 if bytes(content[start : start + 4]) == b"\xff\xff\xff\xff" else 4
    message = _root(content, start + prefix)
    batch = message.table(2)
    if batch is not None and message.number(1, "<B") == 2:  # of a dictionary
        batch = batch.table(1)
    early = message.number(0, "<h") < 4 and message.field(4) is not None  # before version 5 the compression was a field of its own
    return batch if batch is not None and (early or batch.field(3) is not None) else None


def empty_columns(schema: Any) -> int:
    """Columns of the null type, which take no bytes in a file, but a Python object per value in memory."""
    return sum(str(column.type) == "null" for column in schema)


def check_types(schema: Any):
    """``ValueError`` for types in which a few bytes can represent any number of values; ``text_size`` measures views of text."""
    for column in schema:
        kinds = [str(column.type), *_inner(column.type)]
        if any(word in kind for kind in kinds for word in _NOT_READ) or any(kind in _VIEWS for kind in kinds[1:]):
            raise ValueError(f"the column {short(column.name)} is of type {short(column.type)}, which is not supported; convert it first")


def _inner(kind: Any) -> Iterator[str]:
    """The nested types of a type."""
    held = [kind.field(i).type for i in range(kind.num_fields)]
    held += [getattr(kind, name) for name in ("value_type", "storage_type") if hasattr(kind, name) and not held]
    for inner in held:
        yield str(inner)
        yield from _inner(inner)


def text_size(batch: Any) -> int:
    """Characters of all text in a batch, where several values may share the same bytes."""
    import pyarrow
    from pyarrow import compute

    total = 0
    for column in batch.columns:
        if str(column.type) in _VIEWS:
            total += int(np.frombuffer(column.buffers()[1], "<i4").reshape(-1, 4)[column.offset :][: len(column), 0].sum(dtype=np.int64))
        elif pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
            total += compute.sum(compute.binary_length(column)).as_py() or 0
    return total
