"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def keep_buffers(limit: int = 1 << 30) -> bool:
    """Let the C library keep freed blocks of up to ``limit`` bytes for reuse. Returns whether it does (glibc only).

    By default it hands blocks of more than some MB back to the system, which then clears every page of the next one: for
    values of that size, pointwise operations spend most of their time there.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    # One arena for all threads: those of threads are cut into small heaps, which are handed back all the same.
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, min(limit, 1 << 30)), (_M_TRIM_THRESHOLD, 2**31 - 1))
    return all([bool(mallopt(*setting)) for setting in settings])
