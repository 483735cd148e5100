"""Batches: what is known of each, and the lines that are written for it.

Knows: ids, owners, states, how a line is put on the disk and found again after a crash. Does not
know: what a request means, or who answers it.

What is done is what stands in the two files of a batch: a line that is whole was answered, and is
not asked again; half a line at the end is what a crash left, and is cut off. So a line appears
once, whenever the process dies. A line that was being answered then is asked again. The files
reach the disk every `SYNC_LINES` lines and at the end: the end of the process loses nothing, that
of the machine at most so many lines, which are asked again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from llm_runner_router.errors import NotFound, Overloaded

from .database import Database

if TYPE_CHECKING:
    import sqlite3

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
ENDED = ("failed", "completed", "expired", "cancelled")
MAX_PENDING = 64
"""Batches that are not done, of all keys."""
KEEP = 30 * 86_400.0
"""Seconds that a batch which is done can be looked at."""
SYNC_LINES = 32
_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
  number INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  owner TEXT NOT NULL,
  ended REAL,
  body BLOB NOT NULL
);
"""


class Problem(Struct, frozen=True):
    """Why a batch cannot begin."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Problems(Struct, frozen=True):
    """A list of them."""

    data: tuple[Problem, ...]
    object: Literal["list"] = "list"


class Counts(Struct, frozen=True):
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(Struct, frozen=True, kw_only=True):
    """A batch as OpenAI's API describes it. Times in Unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    errors: Problems | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None


class Entry(Struct, frozen=True):
    """A batch, and what its client is not told."""

    batch: Batch
    owner: str
    keep: float | None = None
    """Seconds its files are kept; None: as configured."""
    goal: Status = "completed"
    """What it will be when its files are in their place."""


_entry = msgspec.json.Decoder(Entry)


class Lock(Protocol):
    """Something that one process has at a time; `models.locks.FileLock`."""

    def take(self) -> bool:
        """Whether it could be had at once."""
        ...

    def free(self) -> None:
        """Let it go; safe to repeat."""
        ...


class Batches:
    """Keeps batches in `folder`, each with a folder of its own while it is at work.

    Args:
        folder: made by the first that is kept.
        lock: whoever has it runs the batches.
        wall: Unix seconds.
    """

    def __init__(self, folder: Path, lock: Lock, wall: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._wall = wall
        self._db = Database(folder / "index.sqlite", _SCHEMA, "batches")
        self.lock = lock

    @property
    def used(self) -> bool:
        """Whether there ever was one."""
        return self._db.path.exists()

    def place(self, id: str) -> Path:
        """The folder of one that is at work."""
        return self.folder / id

    async def add(self, entry: Entry) -> None:
        """Keep a new one.

        Raises:
            Overloaded: too many are not done.
        """

        def work(db: sqlite3.Connection) -> None:
            (count,) = db.execute("SELECT count(*) FROM batches WHERE ended IS NULL").fetchone()
            if count >= MAX_PENDING:
                raise Overloaded(f"{count} batches are not done yet", retry_after=60)
            db.execute("DELETE FROM batches WHERE ended <= ?", (self._wall() - KEEP,))
            db.execute(
                "INSERT INTO batches (id, owner, body) VALUES (?, ?, ?)",
                (entry.batch.id, entry.owner, msgspec.json.encode(entry)),
            )

        await self._db.ask(work)

    async def put(self, entry: Entry) -> None:
        """Keep the newer state of one; its own folder goes once it is done."""
        ended = self._wall() if entry.batch.status in ENDED else None
        row = (ended, msgspec.json.encode(entry), entry.batch.id)

        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE batches SET ended = ?, body = ? WHERE id = ?", row)
            if ended is not None:
                shutil.rmtree(self.place(entry.batch.id), ignore_errors=True)

        await self._db.ask(work)

    async def get(self, owner: str, id: str) -> Entry:
        """The one called `id`.

        Raises:
            NotFound: there is none, or it is another's.
        """
        found = await self._db.ask(lambda db: _find(db, owner, id))
        if found is None:
            raise _unknown(id)
        return _entry.decode(found[1])

    async def page(self, owner: str, after: str | None, limit: int) -> tuple[Sequence[Entry], bool]:
        """Up to `limit` of `owner`'s, the newest first, and whether there are more.

        Raises:
            NotFound: there is none called `after`.
        """

        def work(db: sqlite3.Connection) -> tuple[Sequence[Entry], bool]:
            last = _find(db, owner, after) if after is not None else (1 << 62, b"")
            if last is None:
                raise _unknown(after or "", "after")
            rows = db.execute(
                "SELECT body FROM batches WHERE owner = ? AND number < ? "
                "ORDER BY number DESC LIMIT ?",
                (owner, last[0], limit + 1),
            ).fetchall()
            return [_entry.decode(body) for (body,) in rows[:limit]], len(rows) > limit

        return await self._db.ask(work)

    async def unfinished(self) -> Sequence[Entry]:
        """Those that are not done, the oldest first."""

        def work(db: sqlite3.Connection) -> Sequence[Entry]:
            rows = db.execute("SELECT body FROM batches WHERE ended IS NULL ORDER BY number")
            return [_entry.decode(body) for (body,) in rows]

        return await self._db.ask(work)

    async def aclose(self) -> None:
        """Close the file, and let others run the batches; safe to repeat."""
        await self._db.aclose()
        self.lock.free()


class _Named(Struct, frozen=True):
    custom_id: str


_named = msgspec.json.Decoder(_Named)


class Journal:
    """The answers of one batch: two files that lines are added to, each line whole or not at all.

    Args:
        folder: of the batch; the files are made.
    """

    ANSWERS = "answers.jsonl"
    ERRORS = "errors.jsonl"

    def __init__(self, folder: Path) -> None:
        self.answers = folder / self.ANSWERS
        self.errors = folder / self.ERRORS
        self.done: set[str] = set()
        """`custom_id`s of what stands in them."""
        self._handles: dict[Path, int] = {}
        self._counts = {path: self._recover(path) for path in (self.answers, self.errors)}
        self._unsynced = 0

    def add(self, id: str, line: bytes, *, ok: bool) -> None:
        """Write the line for the request called `id`.

        Raises:
            OSError: the disk is full, or failing; nothing of the line stays.
        """
        path = self.answers if ok else self.errors
        handle = self._handles[path]
        before = os.lseek(handle, 0, os.SEEK_END)
        try:
            view = memoryview(line + b"\n")
            while view:
                view = view[os.write(handle, view) :]
        except OSError:
            os.ftruncate(handle, before)
            raise
        self.done.add(id)
        self._counts[path] += 1
        self._unsynced += 1
        if self._unsynced >= SYNC_LINES:
            self.sync()

    @property
    def completed(self) -> int:
        """Lines that were answered."""
        return self._counts[self.answers]

    @property
    def failed(self) -> int:
        """Lines that were not."""
        return self._counts[self.errors]

    def sync(self) -> None:
        """All that was added is on the disk."""
        for handle in self._handles.values():
            os.fsync(handle)
        self._unsynced = 0

    def close(self) -> None:
        """Let the files go; safe to repeat."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _recover(self, path: Path) -> int:
        """Open a file, note what is in it, and cut off from the first line that is not whole."""
        handle = self._handles[path] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        count = end = 0
        with path.open("rb") as file:
            for line in file:
                try:
                    named = _named.decode(line) if line.endswith(b"\n") else None
                except msgspec.DecodeError:
                    named = None
                if named is None:
                    break
                self.done.add(named.custom_id)
                end += len(line)
                count += 1
        os.ftruncate(handle, end)
        return count


def moved(entry: Entry, status: Status, now: float) -> Entry:
    """`entry` in its next state, from `now` on."""
    when = {f"{status}_at": int(now)} if status != "validating" else {}
    return replace(entry, batch=replace(entry.batch, status=status, **when))


def _find(db: sqlite3.Connection, owner: str, id: str) -> tuple[int, bytes] | None:
    found: tuple[int, bytes] | None = db.execute(
        "SELECT number, body FROM batches WHERE id = ? AND owner = ?", (id, owner)
    ).fetchone()
    return found


def _unknown(id: str, param: str | None = None) -> NotFound:
    return NotFound(
        f"there is no batch {id[:100]!r}",
        hint="batches belong to the key they were made with",
        param=param,
        code="batch_not_found",
    )
