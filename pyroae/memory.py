"""How the C library keeps memory that tensors on the CPU have freed."""

import ctypes
import functools
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # parameters of glibc's ``mallopt``
_LARGEST = 2**25  # bytes of a tensor whose memory is kept; glibc's own limit
_KEPT = 2**28  # bytes of freed memory that the process keeps


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to 256 MB of freed memory, for the whole process; whether it does so.

    By default it returns the memory of large tensors to the system. Each pass over data then takes it again, page by page, which
    costs as much time as the matrix products of a score. Settings in ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_`` or
    ``GLIBC_TUNABLES`` are left as they are, and so are other C libraries.

    >>> type(keep_freed_memory()).__name__
    'bool'
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys() or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _KEPT))
