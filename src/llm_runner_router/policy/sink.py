"""Where records go: a file per day, written by one thread, and the newest ones in memory.

Knows: a bounded queue, JSON lines, days. Does not know what a record means. Nothing on the path
of a request waits for a disk; what does not fit is counted, and the count is shown.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
from msgspec import Struct

from .record import RequestRecord

BATCH_SECONDS = 0.25
"""How long lines gather before they are written; a record is on disk within twice this."""

_log = logging.getLogger(__name__)


class SinkState(Struct, frozen=True):
    """How the writing goes."""

    written: int
    dropped: int
    queued: int
    error: str | None
    """The last reason why lines could not be written."""


class FileSink:
    """Appends records to `<folder>/YYYY-MM-DD.jsonl` (days in UTC, mode 0600).

    Args:
        folder: where the files go (`Home.records`); None keeps records in memory only.
        keep_days: files older than this many days are deleted.
        max_queue: records that may wait for the disk; more are dropped and counted.
        max_bytes: bytes that records with prompts and answers may take while they wait.
        recent: how many records `records()` remembers, without prompts and answers.
        wall: Unix seconds.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        keep_days: int = 30,
        max_queue: int = 20_000,
        max_bytes: int = 64 << 20,
        recent: int = 1_000,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._keep_days = keep_days
        self._max_queue = max_queue
        self._max_bytes = max_bytes
        self._bytes = 0
        self._wall = wall
        self._queue: deque[RequestRecord | bytes] = deque()
        self._lock = threading.Lock()
        self._recent: deque[RequestRecord] = deque(maxlen=recent)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._file: _DayFile | None = None
        self._encoder = msgspec.json.Encoder()
        self._written = 0
        self._refused = 0
        self._failed = 0
        self._error: str | None = None

    def put(self, record: RequestRecord) -> None:
        """Keep `record`; never blocks."""
        line: RequestRecord | bytes = record
        if record.messages or record.prompt is not None or record.answer is not None:
            # Prompts may be megabytes each, so these are bounded by size and not kept twice.
            line = b"" if self._folder is None else self._encoder.encode(record)
            record = msgspec.structs.replace(record, messages=(), prompt=None, answer=None)
        self._recent.append(record)
        if self._folder is None:
            return
        if len(self._queue) >= self._max_queue or self._stop.is_set() or not self._fits(line):
            self._refused += 1
            return
        self._queue.append(line)
        if not self._wake.is_set():
            if self._thread is None:
                self._start()
            self._wake.set()

    def _fits(self, line: RequestRecord | bytes) -> bool:
        """Count a line that was encoded already, if there is room for it."""
        if not isinstance(line, bytes):
            return True
        with self._lock:
            if self._bytes + len(line) > self._max_bytes:
                return False
            self._bytes += len(line)
        return True

    def records(self, limit: int) -> list[RequestRecord]:
        """The newest records, newest first."""
        newest = list(self._recent)
        newest.reverse()
        return newest[: max(limit, 0)]

    def state(self) -> SinkState:
        """How the writing goes."""
        return SinkState(self._written, self._refused + self._failed, len(self._queue), self._error)

    def close(self, timeout: float = 5.0) -> None:
        """Write everything that waits and stop; later records are counted as dropped."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="records", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ the writer's thread

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._stop.wait(BATCH_SECONDS)
            self._wake.clear()
            self._write_all()
            if self._stop.is_set() and not self._queue:
                break
        if self._file is not None:
            self._file.close()

    def _write_all(self) -> None:
        lines: list[bytes] = []
        while self._queue:
            line = self._queue.popleft()
            if isinstance(line, bytes):
                with self._lock:
                    self._bytes -= len(line)
                lines.append(line)
            else:
                lines.append(self._encoder.encode(line))
        if not lines:
            return
        try:
            self._today().append(b"\n".join(lines) + b"\n")
        except OSError as exc:
            self._failed += len(lines)
            if self._error is None:
                _log.warning("records cannot be written: %s", exc)
            self._error = str(exc)
            self._file = None
        else:
            self._written += len(lines)

    def _today(self) -> _DayFile:
        day = datetime.fromtimestamp(self._wall(), UTC).date()
        if self._file is None or self._file.day != day:
            if self._file is not None:
                self._file.close()
            assert self._folder is not None, "the thread runs only with a folder"
            # The mode holds for the last folder only, and its parent holds the key too.
            self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._prune(self._folder, day)
            self._file = _DayFile(self._folder, day)
        return self._file

    def _prune(self, folder: Path, today: date) -> None:
        oldest = today - timedelta(days=self._keep_days)
        for path in folder.glob("????-??-??.jsonl"):
            try:
                day = date.fromisoformat(path.stem)
            except ValueError:
                continue  # not one of ours
            if day < oldest:
                path.unlink(missing_ok=True)


class _DayFile:
    """The file of one day, open for appending."""

    def __init__(self, folder: Path, day: date) -> None:
        self.day = day
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        self._handle = os.open(folder / f"{day.isoformat()}.jsonl", flags, 0o600)
        size = os.fstat(self._handle).st_size
        # A process that was killed may have left half a line; the next one starts on its own.
        if size and _last_byte(self._handle, size) != b"\n":
            os.write(self._handle, b"\n")

    def append(self, data: bytes) -> None:
        """Write all of `data`.

        Raises:
            OSError: the disk would not take it.
        """
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; safe to call more than once."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


def _last_byte(handle: int, size: int) -> bytes:
    os.lseek(handle, size - 1, os.SEEK_SET)
    return os.read(handle, 1)
