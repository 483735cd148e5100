"""Files that clients put here and read again: a folder, and an index of whose they are.

Knows: ids, owners, sizes, when something is forgotten. Does not know what is in a file, or how it
came here.

A file belongs to the key it was made with: nobody else finds it, not even by its id. It is written
beside its place under another name, reaches the disk, gets its place and then its row in the
index: a file without a row is what a crash left, and is removed by a later start.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from llm_runner_router.config import Files as Settings
from llm_runner_router.errors import NotFound, RunnerError, TooLarge, Unsupported

from .database import Database

if TYPE_CHECKING:
    import sqlite3

Purpose = Literal["batch", "batch_output", "user_data"]
PIECE = 1 << 20
"""Bytes that wait for the disk in memory."""
ORPHAN_SECONDS = 6 * 3600.0
"""Age at which a file without a row was left by a crash: no upload takes so long."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
  id TEXT PRIMARY KEY,
  owner TEXT NOT NULL,
  number INTEGER NOT NULL UNIQUE,
  bytes INTEGER NOT NULL,
  made INTEGER NOT NULL,
  expires INTEGER,
  name TEXT NOT NULL,
  purpose TEXT NOT NULL
) WITHOUT ROWID;
"""
_COLUMNS = "id, bytes, made, expires, name, purpose"


class StorageFull(TooLarge):
    """There is no room for another file until some are deleted."""

    status = 413
    default_code = "storage_full"


class File(Struct, frozen=True, kw_only=True):
    """A file as OpenAI's API describes it. Times in Unix seconds."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class Draft:
    """A file that is being written; it is gone unless `Files.add` takes it.

    Args:
        path: where it is written; nothing is there yet.
        limit: bytes it may have.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.size = 0
        self._limit = limit
        self._waiting = bytearray()
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    async def write(self, data: bytes) -> None:
        """Add `data`.

        Raises:
            TooLarge: more than one file may have.
        """
        self.size += len(data)
        if self.size > self._limit:
            raise TooLarge(
                f"the file is over {self._limit} bytes",
                hint="split it, or raise `files.max_size` in the configuration",
                param="file",
            )
        self._waiting += data
        if len(self._waiting) >= PIECE:
            await self._flush()

    async def finish(self) -> None:
        """All of it is on the disk."""
        await self._flush()
        await asyncio.to_thread(os.fsync, self._handle)

    async def _flush(self) -> None:
        data, self._waiting = bytes(self._waiting), bytearray()
        await asyncio.to_thread(_write_all, self._handle, data)

    def close(self) -> None:
        """Remove what nobody took; safe to repeat."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            self.path.unlink(missing_ok=True)


class Files:
    """Keeps files for a time.

    Args:
        folder: where they are; None keeps nothing, and says so to whoever asks.
        settings: limits.
        wall: Unix seconds.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: Settings,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self._folder = folder
        self._wall = wall
        self._db = Database(folder / "index.sqlite", _SCHEMA, "files") if folder else None
        self._swept = False

    @property
    def enabled(self) -> bool:
        """Whether anything is kept."""
        return self._db is not None

    def draft(self) -> Draft:
        """A file to write; close it in any case.

        Raises:
            Unsupported: no files are kept.
        """
        self._index()
        folder = self._place("")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Draft(folder / f".draft-{secrets.token_hex(8)}", self.settings.max_size)

    async def add(
        self, owner: str, draft: Draft, name: str, purpose: Purpose, keep: float | None = None
    ) -> File:
        """Keep what was written, for `keep` seconds, else as configured.

        Raises:
            StorageFull: there are too many files, or too many bytes of them.
            Unsupported: no files are kept.
        """
        await draft.finish()
        made = self._file(new_id(), draft.size, name, purpose, keep)

        def work(db: sqlite3.Connection) -> None:
            self._prune(db)
            self._check_room(db, draft.size)
            os.replace(draft.path, self._place(made.id))
            self._insert(db, owner, made)
            self._sweep(db)

        await self._index().ask(work)
        return made

    async def adopt(
        self, owner: str, path: Path, id: str, name: str, keep: float | None = None
    ) -> File:
        """Keep the file at `path`, which stays there too, under an id that was chosen before.

        Nothing happens the second time. It needs no room: what was worked for is not refused.
        """

        def work(db: sqlite3.Connection) -> File:
            share(path, self._place(id))
            size = self._place(id).stat().st_size
            made = self._file(id, size, name, "batch_output", keep)
            self._insert(db, owner, made)
            return made

        return await self._index().ask(work)

    async def get(self, owner: str, id: str) -> File:
        """The file called `id`.

        Raises:
            NotFound: there is none, it is too old, or it is another's.
        """
        found = await self._index().ask(lambda db: self._find(db, owner, id))
        if found is None:
            raise _unknown(id)
        return found

    async def open(self, owner: str, id: str) -> tuple[File, Path]:
        """The file called `id` and where its content is.

        Raises:
            NotFound: there is none, it is too old, or it is another's.
        """
        return await self.get(owner, id), self._place(id)

    async def page(
        self,
        owner: str,
        *,
        after: str | None = None,
        limit: int = 10_000,
        newest_first: bool = True,
        purpose: str | None = None,
    ) -> tuple[Sequence[File], bool]:
        """Up to `limit` files of `owner`'s, and whether there are more.

        Raises:
            NotFound: there is no file called `after`.
        """
        order, side = ("DESC", "<") if newest_first else ("ASC", ">")

        def work(db: sqlite3.Connection) -> tuple[Sequence[File], bool]:
            where, values = "owner = ? AND (expires IS NULL OR expires > ?)", [owner, self._wall()]
            if purpose is not None:
                where, values = where + " AND purpose = ?", [*values, purpose]
            if after is not None:
                if self._find(db, owner, after) is None:
                    raise _unknown(after, "after")
                where += f" AND number {side} (SELECT number FROM files WHERE id = ?)"
                values.append(after)
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM files WHERE {where} ORDER BY number {order} LIMIT ?",
                (*values, limit + 1),
            ).fetchall()
            return [_of(row) for row in rows[:limit]], len(rows) > limit

        return await self._index().ask(work)

    async def delete(self, owner: str, id: str) -> None:
        """Forget the file called `id`.

        Raises:
            NotFound: there is none, or it is another's.
        """

        def work(db: sqlite3.Connection) -> bool:
            if self._find(db, owner, id) is None:
                return False
            self._remove(db, [id])
            return True

        if not await self._index().ask(work):
            raise _unknown(id)

    async def aclose(self) -> None:
        """Close the index; safe to repeat."""
        if self._db is not None:
            await self._db.aclose()

    # ------------------------------------------------------------ inside

    def _index(self) -> Database:
        if self._db is None:
            raise Unsupported("no files are kept here", hint="turn `files.enabled` on")
        return self._db

    def _place(self, id: str) -> Path:
        assert self._folder is not None, "asked for after `_index`"
        return self._folder / id

    def _file(self, id: str, size: int, name: str, purpose: Purpose, keep: float | None) -> File:
        now = int(self._wall())
        keep = self.settings.keep if keep is None else keep
        return File(
            id=id,
            bytes=size,
            created_at=now,
            expires_at=now + int(keep) if keep else None,
            filename=name,
            purpose=purpose,
        )

    # ------------------------------------------------------------ in the thread

    def _find(self, db: sqlite3.Connection, owner: str, id: str) -> File | None:
        row = db.execute(
            f"SELECT {_COLUMNS} FROM files "
            "WHERE id = ? AND owner = ? AND (expires IS NULL OR expires > ?)",
            (id, owner, self._wall()),
        ).fetchone()
        return None if row is None else _of(row)

    def _insert(self, db: sqlite3.Connection, owner: str, file: File) -> None:
        last = (file.expires_at, file.filename, file.purpose)
        db.execute(
            "INSERT OR IGNORE INTO files VALUES "
            "(?, ?, (SELECT coalesce(max(number), 0) + 1 FROM files), ?, ?, ?, ?, ?)",
            (file.id, owner, file.bytes, file.created_at, *last),
        )

    def _check_room(self, db: sqlite3.Connection, size: int) -> None:
        count, total = db.execute("SELECT count(*), total(bytes) FROM files").fetchone()
        if count >= self.settings.max_count or total + size > self.settings.limit:
            raise StorageFull(
                f"there are {count} files of {int(total)} bytes already",
                hint="delete some, or raise `files.limit` and `files.max_count`",
            )

    def _remove(self, db: sqlite3.Connection, ids: Sequence[str]) -> None:
        for id in ids:
            db.execute("DELETE FROM files WHERE id = ?", (id,))
            self._place(id).unlink(missing_ok=True)

    def _prune(self, db: sqlite3.Connection) -> None:
        rows = db.execute("SELECT id FROM files WHERE expires <= ?", (self._wall(),)).fetchall()
        self._remove(db, [id for (id,) in rows])

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Remove what a crash left, once: files that no row names."""
        if self._swept:
            return
        self._swept = True
        known = {id for (id,) in db.execute("SELECT id FROM files")}
        before = self._wall() - ORPHAN_SECONDS
        for path in self._place("").iterdir():
            if path.name.startswith((".draft-", "file-")) and path.name not in known:
                with suppress(FileNotFoundError):  # another process sweeps too
                    if path.stat().st_mtime < before:
                        path.unlink()


def new_id() -> str:
    """An id for a file."""
    return f"file-{secrets.token_hex(12)}"


def share(source: Path, destination: Path) -> None:
    """The content of `source` at `destination` too: the same file where that can be, else a copy.

    Nothing happens where there is a file already.
    """
    if destination.exists():
        return
    try:
        os.link(source, destination)
    except FileExistsError:
        return
    except OSError:  # file systems without links
        draft = destination.with_name(f".draft-{secrets.token_hex(8)}")
        try:
            with source.open("rb") as given, open(os.open(draft, _NEW, 0o600), "wb") as copy:
                shutil.copyfileobj(given, copy)
                copy.flush()
                os.fsync(copy.fileno())
            os.replace(draft, destination)
        finally:
            draft.unlink(missing_ok=True)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _of(row: tuple[str, int, int, int | None, str, str]) -> File:
    id, size, made, expires, name, purpose = row
    return File(
        id=id, bytes=size, created_at=made, expires_at=expires, filename=name, purpose=purpose
    )


def _unknown(id: str, param: str | None = None) -> RunnerError:
    return NotFound(
        f"there is no file {id[:100]!r}",
        hint="files are kept for a time, and belong to the key they were made with",
        param=param,
        code="file_not_found",
    )
