"""Converted models that are kept: the same source, kind and options are converted once.

Knows: where results lie in the data folder, which source each came from, and when one is of no use
any more. Does not know: how anything is converted; the work is handed in.

    <data folder>/converted/<key>/model.gguf     or `model/` for kinds that are folders
                            <key>/about.json     a `Note`: what it was made of
                            .<key>.draft/        a conversion that runs, or was killed
                            .locks/<key>.lock    held while one runs, by the process that converts;
                                                 it goes with that process, however that ends
    key = SHA-256 over version, kind, options and the content of the source
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from llm_runner_router.errors import EngineError, ModelFileError, RunnerError
from llm_runner_router.home import Home, write_atomic
from llm_runner_router.models.locks import FileLock

from .base import Cancelled, Options
from .identity import digest, stamp
from .plan import FILES

VERSION: Final = 2
"""Raised when a converter writes something else from the same source."""
NOTE: Final = "about.json"
PAUSE: Final = 0.1
"""Seconds between two looks whether another process has finished the same conversion."""
_KEY = re.compile(r"[0-9a-f]{32}")


class Origin(Struct, frozen=True):
    """A place where the source of a conversion lay."""

    path: str
    stamp: str
    """See `identity.stamp`."""


class Note(Struct, frozen=True, omit_defaults=True):
    """What a result was made of; `about.json` beside it."""

    want: str
    options: Options = Options()
    origins: tuple[Origin, ...] = ()
    bytes: int = 0
    made: float = 0.0
    """Seconds since 1970."""
    version: int = VERSION


class Kept(Struct, frozen=True):
    """A result that is kept."""

    path: Path
    """What an engine opens."""
    note: Note


class Freed(Struct, frozen=True):
    """What a cleaning deleted."""

    conversions: int = 0
    bytes: int = 0


def key(source: Path, want: str, options: Options) -> str:
    """The name under which the result is kept.

    Raises:
        ModelFileError: as `identity.digest`.
    """
    facts = [VERSION, want, options, digest(source)]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:32]


def place(home: Home, source: Path, want: str, options: Options) -> Path:
    """Where the result lies, or will lie.

    Raises:
        ModelFileError: as `identity.digest`.
    """
    return _folder(home) / key(source, want, options) / _result(want)


def cached(
    home: Home,
    source: Path,
    want: str,
    options: Options,
    work: Callable[[Path], object],
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Path:
    """The converted model, made by `work(target)` if it is not there yet.

    Of several that ask at once, in whatever processes, one works and the others wait for it.

    Args:
        cancelled: asked while another process works.

    Raises:
        ModelFileError: the source cannot be read, or changed while it was converted; nothing is
            kept then.
        EngineError: the data folder cannot be written.
        Cancelled: `cancelled` said so; and whatever `work` raises.
    """
    before = Origin(str(source.absolute()), stamp(source))
    name = key(source, want, options)
    folder = _folder(home)
    target = folder / name / _result(want)
    if target.exists():  # used also where nothing can be written
        with suppress(OSError), _alone(target.parent) as mine:
            if mine:
                _remember(target.parent, want, options, before)
        return target
    try:
        with _holding(folder, name, cancelled):
            draft = folder / f".{name}.draft"
            shutil.rmtree(draft, ignore_errors=True)  # whoever made it does not hold the lock
            if target.exists():  # another was quicker
                _remember(target.parent, want, options, before)
                return target
            draft.mkdir()
            try:
                work(draft / target.name)
                if stamp(source) != before.stamp and key(source, want, options) != name:
                    raise ModelFileError(
                        f"`{source}` changed while it was converted", hint="run it again"
                    )
                _remember(draft, want, options, before)
                shutil.rmtree(target.parent, ignore_errors=True)
                draft.rename(target.parent)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except OSError as exc:
        raise EngineError(
            f"cannot keep a converted model in `{folder}`: {exc.strerror or exc}",
            hint="check that the folder can be written and that the disk has room",
        ) from exc
    return target


def kept(home: Home) -> list[Kept]:
    """All results of today's version, the oldest first."""
    found = []
    for folder in _entries(home):
        note = _read(folder)
        if note is not None and note.version == VERSION:
            found.append(Kept(folder / _result(note.want), note))
    return sorted(found, key=lambda one: one.note.made)


def made_of(home: Home, source: Path) -> list[Kept]:
    """The results that were made of the model at `source`."""
    path = str(source.absolute())
    return [one for one in kept(home) if any(o.path == path for o in one.note.origins)]


def forget(home: Home, source: Path) -> Freed:
    """Delete what was made of the model at `source` and of nothing else that is still there.

    One that is being made this moment stays.
    """
    path = str(source.absolute())
    freed = Freed()
    for one in made_of(home, source):
        with _alone(one.path.parent) as mine:
            if not mine:
                continue
            left = tuple(o for o in one.note.origins if o.path != path and os.path.lexists(o.path))
            if left:
                _write(one.path.parent, replace(one.note, origins=left))
            else:
                freed = _delete(one.path.parent, freed)
    return freed


def prune(home: Home, *, quick: bool = False) -> Freed:
    """Delete results whose sources are gone or are not what they were, and those of older versions.

    Args:
        quick: look only whether sources are there, not whether they changed.
    """
    sweep(home)
    freed = Freed()
    while True:  # a result may be the source of another one
        before = freed
        for folder in _entries(home):
            with _alone(folder) as mine:
                if mine and not _useful(folder, quick=quick):
                    freed = _delete(folder, freed)
        if freed == before:
            return freed


def sweep(home: Home) -> int:
    """Delete what killed conversions left; how many those were."""
    count = 0
    for draft in _folder(home).glob(".*.draft"):
        with _alone(draft.with_name(draft.name.split(".")[1])) as mine:
            if mine:
                shutil.rmtree(draft, ignore_errors=True)
                count += 1
    return count


# ---------------------------------------------------------------- inside


def _folder(home: Home) -> Path:
    return home.path / "converted"


def _result(want: str) -> str:
    return "model.gguf" if want in FILES else "model"


def _entries(home: Home) -> list[Path]:
    try:
        return [path for path in _folder(home).iterdir() if _KEY.fullmatch(path.name)]
    except OSError:
        return []


@contextmanager
def _holding(folder: Path, name: str, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock of one result; wait for it as long as nobody cancels."""
    lock = _lock(folder, name)
    while not lock.take():
        if cancelled():
            raise Cancelled("the conversion was stopped")
        time.sleep(PAUSE)
    try:
        yield
    finally:
        lock.free()


@contextmanager
def _alone(entry: Path) -> Iterator[bool]:
    """Whether nobody is converting to `entry`; nobody begins to within the block."""
    lock = _lock(entry.parent, entry.name)
    mine = False
    with suppress(OSError):
        mine = lock.take()
    try:
        yield mine
    finally:
        lock.free()


def _lock(folder: Path, name: str) -> FileLock:
    return FileLock(folder / ".locks" / f"{name}.lock")


def _useful(entry: Path, *, quick: bool) -> bool:
    """Whether a result can still be asked for: one of its sources is what it was."""
    note = _read(entry)
    if note is None or note.version != VERSION or not (entry / _result(note.want)).exists():
        return False
    there = [o for o in note.origins if os.path.lexists(o.path)]
    if quick:
        return bool(there)
    left = [now for o in there if (now := _same(o, note, entry.name)) is not None]
    if left != list(note.origins):
        with suppress(OSError):
            _write(entry, replace(note, origins=tuple(left)))
    return bool(left)


def _same(origin: Origin, note: Note, name: str) -> Origin | None:
    """The source as it stands there now, if it has the content of before."""
    path = Path(origin.path)
    try:
        now = stamp(path)
        if now == origin.stamp or key(path, note.want, note.options) == name:
            return Origin(origin.path, now)
    except RunnerError:
        pass
    return None


def _remember(folder: Path, want: str, options: Options, origin: Origin) -> None:
    """Write down that the result in `folder` is made of `origin`, too."""
    note = _read(folder)
    if note is None:
        size = _size(folder)
        note = Note(want, options, (), size, time.time())
    if origin in note.origins:
        return
    others = tuple(o for o in note.origins if o.path != origin.path and os.path.lexists(o.path))
    _write(folder, replace(note, origins=(*others, origin)))


def _read(folder: Path) -> Note | None:
    try:
        return msgspec.json.decode((folder / NOTE).read_bytes(), type=Note)
    except (OSError, msgspec.DecodeError):
        return None


def _write(folder: Path, note: Note) -> None:
    write_atomic(folder / NOTE, msgspec.json.encode(note), 0o644)


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != NOTE)


def _delete(entry: Path, freed: Freed) -> Freed:
    """Let a result vanish at once, then delete it."""
    size = 0
    with suppress(OSError):
        size = _size(entry)
    draft = entry.with_name(f".{entry.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        entry.rename(draft)
    except OSError:
        return freed
    shutil.rmtree(draft, ignore_errors=True)
    return Freed(freed.conversions + 1, freed.bytes + size)
