"""What the machine can do and how it is kept busy: read bandwidth, processes that only burn time.

Knows: the C library's `memchr` as the simplest fast pass over memory. Does not know models.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .proc import Child

BUFFER = 256 * 2**20
"""Bytes: several times the last-level cache of usual machines."""
_BURN = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_bandwidth(threads: int, passes: int = 5) -> float:
    """Bytes per second that `threads` threads together read from memory; the best of `passes`.

    Each searches its part of a large buffer for a byte that is not there. `memchr` reads every
    cache line once, in order, with vector instructions: the same pattern as decoding, where each
    weight is read once per token.
    """
    libc = ctypes.CDLL(None)
    libc.memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    libc.memchr.restype = ctypes.c_void_p
    buffer = ctypes.create_string_buffer(BUFFER)
    ctypes.memset(buffer, 1, BUFFER)  # untouched pages would all be the same page of zeros
    start, share = ctypes.addressof(buffer), BUFFER // threads
    best = 0.0
    for _ in range(passes):
        workers = [
            threading.Thread(target=libc.memchr, args=(start + i * share, 0, share))
            for i in range(threads)
        ]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, share * threads / (time.perf_counter() - began))
    return best


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Processes that use a core each, at normal priority, until the block is left."""
    with ExitStack() as stack:
        for _ in range(processes):
            stack.enter_context(Child([sys.executable, "-c", _BURN], name="busy loop"))
        yield
