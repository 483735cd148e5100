"""Locks between processes, on files, that vanish with their holder.

Knows: `flock`, which Hugging Face's own downloader takes on the same files. Does not know: what is
guarded. A lock is a plain context manager; `waiting` waits without blocking an event loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from llm_runner_router.errors import Unavailable

try:
    import fcntl
except ImportError:  # Windows: one process at a time, without sharing
    fcntl = None  # type: ignore[assignment]  # the module is missing there

PAUSE = 0.1
"""Seconds between two looks at a lock that another process holds."""


class FileLock:
    """An advisory lock on `path`, which is created; exclusive, or shared with other sharers."""

    def __init__(self, path: Path, *, shared: bool = False, patience: float = 30.0) -> None:
        self.path = path
        self._shared = shared
        self._patience = patience
        self._handle = -1

    def __enter__(self) -> Self:
        """Wait for it.

        Raises:
            Unavailable: another process kept it for longer than `patience` seconds.
        """
        until = time.monotonic() + self._patience
        while not self.take():
            if time.monotonic() > until:
                raise busy(self.path)
            time.sleep(PAUSE)
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def take(self) -> bool:
        """Whether it could be had at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            if not _take(handle, self._shared):
                os.close(handle)
                return False
            # Someone may have removed the file while we waited: that lock guards nothing.
            current = os.stat(self.path)
            mine = os.fstat(handle)
        except FileNotFoundError:
            os.close(handle)
            return False
        except BaseException:
            os.close(handle)
            raise
        if (current.st_dev, current.st_ino) != (mine.st_dev, mine.st_ino):
            os.close(handle)
            return False
        self._handle = handle
        return True

    def free(self) -> None:
        """Let it go; safe to repeat."""
        if self._handle >= 0:
            os.close(self._handle)  # closing is what unlocks
            self._handle = -1


def busy(path: Path) -> Unavailable:
    """The error for a lock that nobody gave back."""
    return Unavailable(
        f"another process is changing the models (`{path}`)",
        hint="wait until it has finished and try again",
    )


@asynccontextmanager
async def waiting(
    lock: FileLock, *, patience: float, waited: Callable[[], None] = lambda: None
) -> AsyncIterator[None]:
    """Hold `lock`; `waited` is called once if another process has it.

    Raises:
        Unavailable: it was not free within `patience` seconds.
    """
    until = time.monotonic() + patience
    told = False
    while not lock.take():
        if not told:
            waited()
            told = True
        if time.monotonic() > until:
            raise busy(lock.path)
        await asyncio.sleep(PAUSE)
    try:
        yield
    finally:
        lock.free()


def _take(handle: int, shared: bool) -> bool:
    if fcntl is None:
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]  # Windows only
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
