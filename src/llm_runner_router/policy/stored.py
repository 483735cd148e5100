"""Responses that clients may come back to, in a database of their own.

Knows: ids, owners, the order of turns, when and why something is forgotten. Does not know what a
response means; it is bytes here.

A response belongs to the key it was made with: nobody else finds it, not even by its id. Writing
waits for no disk: it is queued, and whoever reads comes after it in the same queue.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import NotFound, Overloaded, Unavailable

from .database import Database

if TYPE_CHECKING:
    import sqlite3

MAX_TURNS = 1_000
"""Turns of one conversation that are read back."""
MAX_HISTORY = 64 << 20
"""Bytes of them."""
MAX_PENDING = 64 << 20
"""Bytes of responses that may wait for the disk; one may in any case."""
PRUNE_EVERY = 64
"""Responses between two looks at what is too old or too much."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
  id TEXT PRIMARY KEY,
  owner TEXT NOT NULL,
  previous TEXT,
  made REAL NOT NULL,
  expires REAL NOT NULL,
  running INTEGER NOT NULL,
  size INTEGER NOT NULL,
  body BLOB NOT NULL,
  input BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS responses_made ON responses (made);
"""
_log = logging.getLogger(__name__)


class Stored(Struct, frozen=True):
    """A response that is kept."""

    id: str
    previous: str | None
    body: bytes
    """The response object."""
    input: bytes
    """A JSON list: the items of its own turn."""
    running: bool = False
    """It is still being made, or was when its process ended."""


class Responses:
    """Keeps responses for a time.

    Args:
        path: the file; None keeps nothing, and says so to whoever asks.
        keep: seconds.
        limit: bytes of all of them; the oldest go.
        wall: Unix seconds.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        keep: float,
        limit: int,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._db = Database(path, _SCHEMA, "responses") if path is not None else None
        self._keep = keep
        self._limit = limit
        self._wall = wall
        self._pending = 0
        self._lock = Lock()
        self._count = 0

    @property
    def enabled(self) -> bool:
        """Whether anything is kept."""
        return self._db is not None

    # ------------------------------------------------------------ asked by surfaces

    def put(self, owner: str, stored: Stored) -> None:
        """Keep `stored`, or its newer state; returns before it is on disk.

        Raises:
            Overloaded: too many wait for the disk.
        """
        if self._db is None:
            return
        size = len(stored.body) + len(stored.input)
        with self._lock:
            if self._pending and self._pending + size > MAX_PENDING:
                raise Overloaded("too many responses wait to be stored", retry_after=1)
            self._pending += size
        try:
            done = self._db.submit(lambda db: self._write(db, owner, stored))
        except Unavailable:
            self._give_back(size)
            raise
        done.add_done_callback(lambda future: self._written(future, size))

    async def get(self, owner: str, id: str) -> Stored:
        """The response called `id`.

        Raises:
            NotFound: there is none, it is too old, or it is another's.
        """
        if self._db is not None:
            found = await self._db.ask(lambda db: self._read(db, owner, id))
            if found is not None:
                return found
        raise _unknown(id, self.enabled)

    async def history(self, owner: str, id: str) -> Sequence[Stored]:
        """The response called `id` and those it continues, the first one first.

        Raises:
            NotFound: one of them is not there; names it.
        """
        if self._db is None:
            raise _unknown(id, self.enabled, id)
        return await self._db.ask(lambda db: self._chain(db, owner, id))

    async def delete(self, owner: str, id: str) -> None:
        """Forget the response called `id`.

        Raises:
            NotFound: there is none, or it is another's.
        """
        if self._db is None or not await self._db.ask(lambda db: _remove(db, owner, id)):
            raise _unknown(id, self.enabled)

    async def aclose(self) -> None:
        """Write what waits, and close the file; safe to repeat."""
        if self._db is not None:
            await self._db.aclose()

    # ------------------------------------------------------------ the queue

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._pending -= size

    def _written(self, done: Future[None], size: int) -> None:
        self._give_back(size)
        exc = done.exception()
        if exc is not None:
            _log.error("a response was not stored: %s", exc)

    # ------------------------------------------------------------ in the thread

    def _write(self, db: sqlite3.Connection, owner: str, stored: Stored) -> None:
        now = self._wall()
        size = len(stored.body) + len(stored.input)
        row = (stored.id, owner, stored.previous, now, now + self._keep, stored.running, size)
        # An id of another owner's stays what it is: ids of upstreams are not ours to trust.
        db.execute(
            "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
            "SET running = excluded.running, size = excluded.size, body = excluded.body, "
            "input = excluded.input WHERE owner = excluded.owner",
            (*row, stored.body, stored.input),
        )
        if self._count % PRUNE_EVERY == 0:
            self._prune(db)
        self._count += 1

    def _read(self, db: sqlite3.Connection, owner: str, id: str) -> Stored | None:
        found = db.execute(
            "SELECT id, previous, body, input, running FROM responses "
            "WHERE id = ? AND owner = ? AND expires > ?",
            (id, owner, self._wall()),
        ).fetchone()
        if found is None:
            return None
        id, previous, body, given, running = found
        return Stored(id, previous, body, given, bool(running))

    def _chain(self, db: sqlite3.Connection, owner: str, id: str) -> Sequence[Stored]:
        found: list[Stored] = []
        size = 0
        wanted: str | None = id
        while wanted is not None:
            stored = self._read(db, owner, wanted)
            if stored is None:
                raise _unknown(wanted, self.enabled, id)
            found.append(stored)
            size += len(stored.body) + len(stored.input)
            if len(found) > MAX_TURNS or size > MAX_HISTORY:
                raise NotFound(
                    f"the turns before {id!r} are more than are read back ({MAX_TURNS} turns, "
                    f"{MAX_HISTORY >> 20} MiB)",
                    hint="send the items that matter as `input`",
                    param="previous_response_id",
                )
            wanted = stored.previous
        return found[::-1]

    def _prune(self, db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM responses WHERE expires <= ?", (self._wall(),))
        excess = db.execute("SELECT total(size) FROM responses").fetchone()[0] - self._limit
        if excess <= 0:
            return
        gone: list[tuple[str]] = []
        for id, size in db.execute("SELECT id, size FROM responses ORDER BY made"):
            gone.append((id,))
            excess -= size
            if excess <= 0:
                break
        db.executemany("DELETE FROM responses WHERE id = ?", gone)


def _remove(db: sqlite3.Connection, owner: str, id: str) -> bool:
    gone = db.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (id, owner))
    return gone.rowcount > 0


_raws = msgspec.json.Decoder(list[Raw])


def items(encoded: bytes) -> list[Raw]:
    """The items of `Stored.input`."""
    return _raws.decode(encoded)


def _unknown(id: str, enabled: bool, after: str | None = None) -> NotFound:
    hint = "responses are kept for `responses.keep`, and belong to the key they were made with"
    if not enabled:
        hint = "nothing is kept here: `responses.enabled` is off"
    before = "" if after in (None, id) else f", which {after!r} continues"
    return NotFound(
        f"there is no response {id[:100]!r}{before}",
        hint=hint,
        param="previous_response_id" if after is not None else None,
        code="previous_response_not_found" if after is not None else "response_not_found",
    )
