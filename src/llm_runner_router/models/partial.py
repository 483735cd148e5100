"""A file that is being downloaded: its bytes so far, and a journal of which ones they are.

Knows: parts, positions, and whether what lies on disk may be continued. Does not know: where the
bytes come from (`sources/`), when to give up (`download.py`), where a finished file goes
(`blobs.py`).

`<key>.part` holds the bytes at their final offsets. `<key>.journal` holds a head of 4,096 bytes
(what is being downloaded) and one little-endian 64-bit position per part, rewritten in place after
the bytes it counts. A process that is killed loses at most the chunk it was writing. After a crash
of the whole machine the journal may count bytes that never reached the disk; a digest finds that
out, and where the source gives none the journal of an earlier boot is not believed.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self, cast

import msgspec
from msgspec import Struct

from .manifest import RemoteFile
from .offsets import write_at

HEAD = 4096
MIB = 1 << 20
SMALLEST_PART, LARGEST_PART = 16 * MIB, 256 * MIB
OPEN_END = 1 << 62
"""The end of a part whose end nobody knows."""


class _Head(Struct, frozen=True):
    """What the journal is about; any difference means: start again."""

    size: int
    identity: str
    part: int
    boot: int = 0


class Part:
    """One range of the file and how far it has come."""

    __slots__ = ("at", "end", "start")

    def __init__(self, start: int, end: int, at: int) -> None:
        self.start = start
        self.end = end
        self.at = at

    @property
    def left(self) -> int:
        """Bytes that are missing."""
        return self.end - self.at


def part_size(size: int, workers: int) -> int:
    """Bytes per part: several parts per worker, so that one slow part does not end alone."""
    return max(SMALLEST_PART, min(LARGEST_PART, -(-size // (workers * 4))))


class Partial:
    """The files of one unfinished download. `open` it, `write` parts, then `seal` or `discard`."""

    def __init__(self, folder: Path, key: str, head: _Head) -> None:
        self.path = folder / f"{key}.part"
        self.journal = folder / f"{key}.journal"
        self._head = head
        self._handle = -1
        self._log = -1
        self.parts: list[Part] = []
        self.resumed = 0
        """Bytes that were there already."""

    @classmethod
    def open(cls, folder: Path, key: str, file: RemoteFile, *, workers: int = 4) -> Self:
        """Continue what is there if it is of the same content, else start anew.

        Raises:
            OSError: the folder cannot be written.
        """
        size = OPEN_END if file.size is None else file.size
        identity = str(file.digest or file.etag)
        boot = 0 if file.digest is not None else _boot()
        whole = file.size is None or size == 0
        head = _Head(size, identity, size if whole else part_size(size, workers), boot)
        made = cls(folder, key, head)
        folder.mkdir(parents=True, exist_ok=True)
        if not (identity and made._continue()):
            made.reset()
        return made

    @property
    def size(self) -> int | None:
        """Bytes the file will have; None while nobody knows."""
        return None if self._head.size == OPEN_END else self._head.size

    @property
    def done(self) -> int:
        """Bytes that are there."""
        return sum(part.at - part.start for part in self.parts)

    @property
    def prefix(self) -> int:
        """Bytes that are there without a gap from the start."""
        for part in self.parts:
            if part.left:
                return part.at
        return self.parts[-1].at if self.parts else 0

    @property
    def complete(self) -> bool:
        """Nothing is missing."""
        return not any(part.left for part in self.parts)

    @property
    def handle(self) -> int:
        """The descriptor of the data."""
        return self._handle

    def write(self, index: int, data: bytes | memoryview) -> None:
        """Put `data` where part `index` stands, and count it.

        Raises:
            OSError: the disk is full, for example.
        """
        part = self.parts[index]
        view = memoryview(data)
        while view:
            count = write_at(self._handle, view, part.at)
            view = view[count:]
            part.at += count
        self._note(index)

    def settle(self, start: int, end: int) -> None:
        """Ask the system to begin writing a range to the disk, so that `seal` waits for little.

        Without it a download of 500 MB ended in a second of `fsync` while nothing else happened.
        """
        if _sync_range is not None:
            _sync_range(self._handle, start, end - start, _WRITE)

    def end(self, index: int) -> None:
        """The source says that part `index` ends here; only for a size nobody knew."""
        self.parts[index].end = self.parts[index].at

    def rewind(self, index: int) -> None:
        """Forget what part `index` has."""
        self.parts[index].at = self.parts[index].start
        self._note(index)

    def reset(self, *, one: bool = False) -> None:
        """Start anew; with `one` as a single part, for a source that cannot start in the middle."""
        self.close()
        self.resumed = 0
        size, step = self._head.size, self._head.part
        if one:
            step = size
            self._head = msgspec.structs.replace(self._head, part=step)
        starts = range(0, size, step) if size else ()
        self.parts = [Part(start, min(start + step, size), start) for start in starts]
        self._open(os.O_TRUNC)
        if self.size:
            os.truncate(self._handle, self.size)
        write_at(self._log, msgspec.json.encode(self._head).ljust(HEAD), 0)
        for index in range(len(self.parts)):
            self._note(index)

    def seal(self) -> Path:
        """The whole file, safely on the disk; its journal goes away.

        Raises:
            OSError: it could not be written.
        """
        os.fsync(self._handle)
        self.close()
        self.journal.unlink(missing_ok=True)
        return self.path

    def discard(self) -> None:
        """Delete everything."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files and keep them; safe to repeat."""
        for handle in (self._handle, self._log):
            if handle >= 0:
                os.close(handle)
        self._handle = self._log = -1

    # ------------------------------------------------------------ inside

    def _continue(self) -> bool:
        """Whether a journal of the same content is there; its positions are taken over."""
        try:
            text = self.journal.read_bytes()
            there = self.path.stat().st_size
            head = msgspec.json.decode(text[:HEAD].rstrip(), type=_Head)
        except (OSError, msgspec.DecodeError):
            return False
        mine = self._head
        if (head.size, head.identity, head.boot) != (mine.size, mine.identity, mine.boot):
            return False
        if head.part < 1 or head.size < 0 or there > head.size:
            return False
        self._head = head
        starts = range(0, head.size, head.part) if head.size else range(0)
        if len(text) != HEAD + 8 * len(starts):
            return False
        ends = [min(start + head.part, head.size) for start in starts]
        positions = struct.unpack_from(f"<{len(starts)}q", text, HEAD)
        parts = [Part(*values) for values in zip(starts, ends, positions, strict=True)]
        if any(not (p.start <= p.at <= min(p.end, there)) for p in parts if p.at != p.start):
            return False
        self.parts = parts
        self.resumed = self.done
        self._open(0)
        return True

    def _open(self, flags: int) -> None:
        wanted = os.O_RDWR | os.O_CREAT | flags
        wanted |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)  # Windows has the latter
        self._handle = os.open(self.path, wanted, 0o644)
        self._log = os.open(self.journal, wanted, 0o600)

    def _note(self, index: int) -> None:
        write_at(self._log, struct.pack("<q", self.parts[index].at), HEAD + 8 * index)


def _find_sync_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's `sync_file_range(2)`, which Python does not offer; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    function.restype = ctypes.c_int
    return cast("Callable[[int, int, int, int], int]", function)


_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, and wait for nothing
_sync_range = _find_sync_range()


def _boot() -> int:
    """When this machine was started, in seconds since 1970, to ten seconds."""
    import psutil

    return int(psutil.boot_time()) // 10
