"""Numeric arrays in MATLAB files of version 5. SciPy's reader is not used because some damaged files crash the process in it."""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..checks import InputError
from .limits import check_size, check_unpacked

_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_MATRIX, _COMPRESSED = 14, 15


def read(path: Path, limit: float) -> dict[str, np.ndarray]:
    """The arrays of numbers in a file, by name.

    Raises:
        ValueError: another format, a damaged file, or arrays of more than ``limit`` bytes.
    """
    check_size(path.stat().st_size, limit, path.name)
    content, unpacked = path.read_bytes(), Unpacked(limit, path.name)
    if content[124:128] != b"\x00\x01IM":
        raise InputError(f"data: expected {path} as a MATLAB file of version 5, got another format")
    try:
        return dict(_array(data) for kind, data in _elements(content[128:], unpacked) if kind == _MATRIX)
    except InputError:
        raise
    except (ValueError, struct.error, zlib.error, KeyError, OverflowError) as error:
        raise InputError(f"data: {path} is damaged ({error})") from error


class Unpacked:
    """Counts the bytes that compressed arrays unpack to, up to a limit."""

    def __init__(self, limit: float, name: str):
        self.size, self.limit, self.name = 0, limit, name

    def unpack(self, data: bytes) -> bytes:
        """The content of a compressed element.

        Raises:
            TooLarge: it would be more, with all before it, than the limit.
        """
        content = zlib.decompressobj().decompress(data, int(min(max(0, self.limit - self.size) + 1, 2**62)))
        self.size += len(content)
        check_unpacked(self.size, self.limit, self.name)
        return content


def _elements(content: bytes, unpacked: Unpacked | None = None) -> Iterator[tuple[int, bytes]]:
    """The elements in a part of a file: types and bytes; compressed elements are unpacked."""
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from("<II", content, at)
        small = kind >> 16  # up to 4 bytes of data inside the tag
        kind, start, size = (kind & 0xFFFF, at + 4, min(small, 4)) if small else (kind, at + 8, size)
        data = content[start : start + size]
        if len(data) < size:
            raise ValueError("unexpected end of file")
        at = at + 8 if small else start + size + (0 if kind == _COMPRESSED else -size % 8)
        if kind == _COMPRESSED and unpacked is None:
            raise ValueError("a compressed element inside another")
        if kind == _COMPRESSED:
            yield from _elements(unpacked.unpack(data))
        else:
            yield kind, data


def _array(content: bytes) -> tuple[str, np.ndarray]:
    """An array's name and its values, which are stored in column-major order."""
    _, (_, shape), (_, name), (kind, numbers), *_ = _elements(content)
    shape = np.frombuffer(shape, "<i4").tolist()
    values = np.frombuffer(numbers, _NUMBERS[kind])
    if min(shape, default=-1) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"an array of shape {shape} has {len(values)} values")
    return name.decode("ascii", "replace"), values.reshape(shape, order="F")
