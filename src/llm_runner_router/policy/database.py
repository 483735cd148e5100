"""One SQLite file that one thread asks, in the order of the questions.

Knows: how the file is opened, kept private and closed. Does not know: tables.

The journal is of the `TRUNCATE` kind, as SQLite before 3.51.3 may damage a file in WAL mode
(https://sqlite.org/releaselog/3_51_3.html). A change that was awaited is on the disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llm_runner_router.errors import Unavailable

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")


class Database:
    """The file at `path`, made with `schema` by its first question.

    Args:
        path: the file; its folder is made too.
        schema: statements that may run again.
        name: what an error calls it.
    """

    def __init__(self, path: Path, schema: str, name: str) -> None:
        self.path = path
        self._schema = schema
        self._name = name
        self._thread: ThreadPoolExecutor | None = None
        self._db: sqlite3.Connection | None = None
        self._closed = False

    async def ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` gives, in the thread; a caller who leaves does not stop it.

        Raises:
            Unavailable: closed, or the file cannot be read or written.
        """
        import sqlite3  # a gateway that nobody asks for it does without

        try:
            return await asyncio.wrap_future(self.submit(work))
        except (sqlite3.Error, OSError) as exc:
            raise Unavailable(f"the store of {self._name} does not answer: {exc}") from exc

    def submit(self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Put `work` behind what was asked before; whoever calls this bounds how much waits.

        Raises:
            Unavailable: closed.
        """
        if self._closed:
            raise Unavailable(f"the store of {self._name} is closed")
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, f"llmrr-{self._name}")
        return self._thread.submit(lambda: work(self._open()))

    async def aclose(self) -> None:
        """Finish what was asked, and close the file; safe to repeat."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.shutdown)
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            import sqlite3

            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            db = sqlite3.connect(
                self.path, timeout=5, check_same_thread=False, isolation_level=None
            )
            db.execute("PRAGMA journal_mode = TRUNCATE")
            db.execute("PRAGMA secure_delete = ON")
            db.executescript(self._schema)
            self._db = db
        return self._db
