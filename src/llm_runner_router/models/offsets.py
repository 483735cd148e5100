"""Reading and writing at a place in an open file, by several threads at once, on every system.

Knows: that POSIX has calls for it which leave the file's own position alone, and that Windows has
none. Does not know: what is written. Without those calls one lock in this process keeps moving the
position and using it together; the descriptors here are used by one process each.
"""

from __future__ import annotations

import os
import threading

_positions = threading.Lock()
"""Held between moving a descriptor's position and using it, where there is no call for both."""


def write_at(handle: int, data: bytes | memoryview, at: int) -> int:
    """Write what the system takes of `data` at byte `at`; how many bytes it took.

    Raises:
        OSError: the disk is full, for example.
    """
    if hasattr(os, "pwrite"):
        return os.pwrite(handle, data, at)
    with _positions:
        os.lseek(handle, at, os.SEEK_SET)
        return os.write(handle, data)


def read_at(handle: int, view: memoryview, at: int) -> int:
    """Fill `view` from byte `at` as far as there is something; how many bytes it was.

    Raises:
        OSError: it cannot be read.
    """
    if hasattr(os, "preadv"):
        return os.preadv(handle, [view], at)
    with _positions:
        os.lseek(handle, at, os.SEEK_SET)
        data = os.read(handle, len(view))
    view[: len(data)] = data
    return len(data)
