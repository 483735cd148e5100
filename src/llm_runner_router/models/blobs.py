"""The store: contents by their SHA-256, names that stand for lists of contents.

Knows: where things lie and how they are put there whole. Does not know: where they come from
(`pull.py`), what is in them (`formats/`), stores of other programs (`found.py`).

    blobs/<sha256>          contents, read-only, written by renaming a verified file
    names/<name>.json       a `Stored`: which contents a name means; written by renaming
    trees/<word>-<id>/…     the files of one list under their own names, as links to blobs: what an
                            engine opens, and what a person finds
    partial/…               downloads that are not finished (`partial.py`)
    locks/…                 `store`: changing names; `pulls`: shared by downloads, so that nothing
                            is collected that a name is about to mean; one per content

A name appears last and disappears first, so whoever follows a name finds whole files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct

from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    ModelFileError,
    Unavailable,
    UnknownModel,
)
from llm_runner_router.home import stored_names, write_atomic
from llm_runner_router.refs import Ref

from .locks import FileLock
from .manifest import Stored, StoredFile, hash_file, safe_path

KEEP_PARTIAL = 7 * 86400.0
"""Seconds an unfinished download is kept for continuing it."""
MAX_NAME = 180
BROUGHT = "brought-"
"""How marks begin of files that a pull put outside the store; see `discard.brought`."""
_FICLONE = 0x40049409  # linux/fs.h: share the blocks of two files until one is changed
_WORD = re.compile(r"[^\w.+-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def name_of(ref: Ref) -> str:
    """The name in the store under which `ref` is kept: two spellings, one name."""
    if ref.kind == "file":
        return f"file:{Path(ref.name).expanduser().absolute()}"
    return str(msgspec.structs.replace(ref, quant=ref.quant.upper() if ref.quant else None))


class Checked(Struct, frozen=True):
    """What re-hashing one file found."""

    path: str
    place: Path
    size: int
    ok: bool
    problem: str = ""


class Pruned(Struct, frozen=True):
    """What a cleaning deleted."""

    files: int
    bytes: int


class Store:
    """One store. Naming it creates nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = path / "blobs"
        self.partial = path / "partial"
        self._names = path / "names"
        self._trees = path / "trees"
        self._locks = path / "locks"

    # ------------------------------------------------------------ reading

    def names(self) -> list[str]:
        """Every name, sorted; nothing is opened."""
        return stored_names(self.path)

    def get(self, name: str) -> Stored | None:
        """What a name means; None: there is no such name.

        Raises:
            ModelFileError: its file is damaged.
        """
        path = self._name(name)
        try:
            stored = msgspec.json.decode(path.read_bytes(), type=Stored)
            _check_sound(stored)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as exc:  # msgspec's errors are ValueErrors
            raise ModelFileError(
                f"the store's entry `{path}` is damaged: {exc}",
                hint=f"`llmrr rm {name}` forgets it; pull the model again",
            ) from exc
        return stored

    def all(self) -> list[Stored]:
        """Everything that has a name; damaged entries are left out (`verify` tells them)."""
        found = []
        for name in self.names():
            with contextlib.suppress(ModelFileError):
                if (stored := self.get(name)) is not None:
                    found.append(stored)
        return found

    def blob(self, sha256: str) -> Path:
        """Where the content of that hash lies or would lie."""
        if not _SHA256.fullmatch(sha256):
            raise BadRequest(f"not a SHA-256: {sha256[:80]!r}", hint="64 hexadecimal digits")
        return self.blobs / sha256

    def place(self, file: StoredFile) -> Path:
        """Where the content of a stored file lies."""
        return Path(file.place) if file.place else self.blob(file.sha256)

    def path_of(self, stored: Stored) -> Path:
        """What an engine opens: a file, or the folder of a model that is one.

        Raises:
            ModelFileError: the files are gone; says which.
        """
        self._check_files(stored)
        root = _common(stored)
        if root is None:
            root = self._tree(stored)
            if not all((root / file.path).exists() for file in stored.files):
                with self._changing():
                    self._plant(stored)
        return root / stored.main if stored.main else root

    def _check_files(self, stored: Stored) -> None:
        for file in stored.files:
            there = self.place(file)
            try:
                size = there.stat().st_size
            except OSError as exc:
                raise _gone(stored.name, there, "is not there any more") from exc
            if size != file.size:
                raise _gone(stored.name, there, f"has {size} bytes instead of {file.size}")

    # ------------------------------------------------------------ writing

    def pulling(self) -> FileLock:
        """Held while contents are being put here that no name means yet."""
        return FileLock(self._locks / "pulls.lock", shared=True)

    def lock(self, key: str) -> FileLock:
        """The lock on one content."""
        return FileLock(self._locks / f"{key}.lock")

    def commit(self, draft: Path, sha256: str) -> Path:
        """A verified file becomes a blob, whole or not at all.

        Raises:
            OSError: it cannot be moved there.
        """
        blob = self.blob(sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # a file that is another program's too stays as it is
            if draft.stat().st_nlink == 1:
                draft.chmod(0o444)
            _unprotect(blob)  # a damaged one that is replaced
        os.replace(draft, blob)
        _sync_folder(blob.parent)
        return blob

    def adopt(self, path: Path, sha256: str | None = None) -> StoredFile:
        """Take a file that lies elsewhere: its blocks shared, linked, or at last copied.

        Raises:
            ModelFileError: it is not what `sha256` says.
            OSError: it cannot be read, or there is no space.
        """
        path = path.resolve()
        found = hash_file(path)["sha256"]
        if sha256 is not None and found != sha256:
            raise ModelFileError(
                f"`{path}` has the SHA-256 {found} instead of {sha256}", hint="it is damaged"
            )
        blob = self.blob(found)
        size = path.stat().st_size
        if not blob.exists() or blob.stat().st_size != size:
            self.partial.mkdir(parents=True, exist_ok=True)
            draft = self.partial / f"{found}.{secrets.token_hex(4)}.adopted"
            try:
                share(path, draft)
                self.commit(draft, found)
            finally:
                draft.unlink(missing_ok=True)
        return StoredFile(path.name, size, found)

    def put(self, stored: Stored) -> Path:
        """Make `stored.name` mean `stored`; what an engine opens.

        What the name meant before is remembered as `former`, so that `prune` and `rm` find it.

        Raises:
            ModelFileError: a content is missing.
            OSError: the folder cannot be written.
        """
        if not stored.pulled:
            stored = msgspec.structs.replace(stored, pulled=time.time())
        name = self._name(stored.name)
        with self._changing():
            self._check_files(stored)
            if _common(stored) is None:
                self._plant(stored)
            stored = msgspec.structs.replace(stored, former=self._former(stored))
            self._names.mkdir(parents=True, exist_ok=True)
            write_atomic(name, msgspec.json.encode(stored), 0o644)
        return self.path_of(stored)

    def _former(self, stored: Stored) -> tuple[StoredFile, ...]:
        """What pulls brought for earlier meanings of the name, and the new one does not have."""
        try:
            before = self.get(stored.name)
        except ModelFileError:
            return stored.former
        if before is None:
            return stored.former
        have = {(file.place or file.sha256) for file in stored.files}
        rows = {(file.place or file.sha256): file for file in (*before.former, *before.files)}
        return tuple(f for key, f in rows.items() if (f.ours or not f.place) and key not in have)

    def settle(self, name: str) -> None:
        """Forget what a name meant before, once that is deleted or others keep it.

        Raises:
            OSError: the folder cannot be written.
        """
        with self._changing(), contextlib.suppress(ModelFileError):
            if (stored := self.get(name)) is not None and stored.former:
                settled = msgspec.structs.replace(stored, former=())
                write_atomic(self._name(name), msgspec.json.encode(settled), 0o644)

    def copy(self, name: str, new: str) -> Stored:
        """Give a stored model another name.

        Raises:
            UnknownModel, ModelFileError
        """
        stored = msgspec.structs.replace(self._must(name), name=new, former=())
        self.put(stored)
        return stored

    def remove(self, name: str) -> tuple[Stored | None, int]:
        """Forget a name, and delete what no other name means: what it was, and bytes freed.

        A download that runs keeps the contents until `prune`.

        Raises:
            UnknownModel: there is no such name.
        """
        path = self._name(name)
        stored = None
        with self._changing():
            if not path.exists():
                raise self._unknown(name)
            with contextlib.suppress(ModelFileError):
                stored = self.get(name)
            path.unlink()
        try:
            mine = None if stored is None else stored.contents
            return stored, self.prune(only=mine, partial=False).bytes
        except (Unavailable, ModelFileError):
            return stored, 0

    def prune(
        self, *, only: Iterable[str] | None = None, partial: bool = True, now: float | None = None
    ) -> Pruned:
        """Delete contents and trees that no name means, and old unfinished downloads.

        Args:
            only: look at these contents alone.
            partial: also delete downloads that rest for longer than `KEEP_PARTIAL`.

        Raises:
            Unavailable: a download is running.
            ModelFileError: a name is damaged, so nobody knows what it means.
        """
        with self.collecting():
            return self.sweep(only=only, partial=partial, now=now)

    def sweep(
        self, *, only: Iterable[str] | None = None, partial: bool = True, now: float | None = None
    ) -> Pruned:
        """`prune`, by whoever is in `collecting`.

        Raises:
            ModelFileError: a name is damaged, so nobody knows what it means.
        """
        with self._changing():
            kept = [stored for name in self.names() if (stored := self.get(name)) is not None]
            used = {file.sha256 for stored in kept for file in stored.files if not file.place}
            used |= {stored.template.sha256 for stored in kept if stored.template is not None}
            trees = {self._tree(stored).name for stored in kept}
            wanted = None if only is None else set(only)
            count = size = 0
            for tree in _children(self._trees):
                if tree.name not in trees:
                    _delete(tree)
            for blob in _children(self.blobs):
                if blob.name not in used and (wanted is None or blob.name in wanted):
                    size += _size(blob)
                    count += 1
                    _delete(blob)
            limit = (time.time() if now is None else now) - KEEP_PARTIAL
            for rest in _children(self.partial) if partial else ():
                if rest.name.startswith(BROUGHT):
                    continue  # `discard.py` looks after what these stand for
                if rest.suffix == ".adopted" or rest.lstat().st_mtime < limit:
                    size += _size(rest)
                    count += 1
                    _delete(rest)
            for draft in _children(self._names) if partial else ():
                if draft.name.startswith("."):  # of a process that was killed: we alone may write
                    draft.unlink(missing_ok=True)
            for lock in _children(self._locks) if partial else ():
                if lock.name not in ("store.lock", "pulls.lock"):
                    # Whoever waits for it sees that it is gone. Windows keeps one that is held.
                    with contextlib.suppress(PermissionError):
                        lock.unlink(missing_ok=True)
        return Pruned(count, size)

    def verify(self, stored: Stored) -> Iterator[Checked]:
        """Hash every file of a model again."""
        for file in stored.files:
            place = self.place(file)
            problem = ""
            try:
                size = place.stat().st_size
                if size != file.size:
                    problem = f"has {size} bytes instead of {file.size}"
                elif (found := hash_file(place)["sha256"]) != file.sha256:
                    problem = f"has the SHA-256 {found} instead of {file.sha256}"
            except OSError as exc:
                problem = exc.strerror or str(exc)
            yield Checked(file.path, place, file.size, not problem, problem)

    # ------------------------------------------------------------ inside

    def _changing(self) -> FileLock:
        return FileLock(self._locks / "store.lock")

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Held while contents are deleted; no download runs meanwhile.

        Raises:
            Unavailable: one is running.
        """
        lock = FileLock(self._locks / "pulls.lock")
        if not lock.take():
            raise Unavailable(
                "a download is running; what it brings must not be cleaned away",
                hint="wait until it has finished",
            )
        try:
            yield
        finally:
            lock.free()

    def check_name(self, name: str) -> None:
        """Nothing, if `name` can be one here: asked before a download and not after it.

        Raises:
            BadRequest: it is too long, or not printable.
        """
        self._name(name)

    def _name(self, name: str) -> Path:
        stem = quote(name, safe=" +@,=")
        stem = stem.replace(".", "%2E", 1) if stem.startswith(".") else stem
        if not name.strip() or len(stem) > MAX_NAME or any(ord(c) < 32 for c in name):
            raise BadRequest(
                f"{name[:100]!r} cannot be a name in the store: it must have 1 to {MAX_NAME}"
                " printable characters, of which each `/`, `:` and `?` counts for three",
                hint="`llmrr pull --name NAME …` keeps it under a shorter one",
            )
        return self._names / f"{stem}.json"

    def _must(self, name: str) -> Stored:
        stored = self.get(name)
        if stored is None:
            raise self._unknown(name)
        return stored

    def _unknown(self, name: str) -> UnknownModel:
        import difflib

        near = difflib.get_close_matches(name, self.names(), n=1, cutoff=0.5)
        meant = f"; did you mean `{near[0]}`?" if near else ""
        return UnknownModel(
            f"the store has no {name[:200]!r}{meant}",
            hint="`llmrr ls --all` lists what is on this machine",
            param="model",
        )

    def _tree(self, stored: Stored) -> Path:
        rows = [(f.path, f.sha256, f.place) for f in stored.files]
        id = hashlib.sha256(msgspec.json.encode(sorted(rows))).hexdigest()[:16]
        word = Path(stored.main).stem if stored.main else stored.name.rpartition("/")[2]
        return self._trees / f"{_WORD.sub('-', word)[:60].strip('-.') or 'model'}-{id}"

    def _plant(self, stored: Stored) -> None:
        """Make the tree of `stored`, whole or not at all."""
        tree = self._tree(stored)
        if tree.is_dir() and all((tree / file.path).exists() for file in stored.files):
            return
        draft = tree.with_name(f".{tree.name}.{secrets.token_hex(4)}")
        try:
            for file in stored.files:
                at = draft / file.path
                at.parent.mkdir(parents=True, exist_ok=True)
                source = self.place(file)
                if not source.exists():
                    raise _gone(stored.name, source, "is not there")
                if file.place:
                    at.symlink_to(source)
                else:
                    link(source, at)
            if tree.exists():
                tree.rename(draft.with_name(f"{draft.name}.old"))
            draft.rename(tree)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(draft.with_name(f"{draft.name}.old"), ignore_errors=True)


def share(source: Path, target: Path) -> None:
    """Make `target` have the content of `source` with as little new space as can be.

    Shared blocks first (a change to either file leaves the other as it is), then a hard link,
    then a copy.

    Raises:
        OSError: neither was possible.
    """
    if _clone(source, target):
        return
    try:
        os.link(source, target)
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        shutil.copyfile(source, target)


def link(source: Path, target: Path) -> None:
    """A second name for a file of the store: a hard link, or where there are none a symbolic one.

    Raises:
        OSError: neither was possible.
    """
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(os.path.relpath(source, target.parent))


def _clone(source: Path, target: Path) -> bool:
    try:
        import fcntl

        with source.open("rb") as old, target.open("xb") as new:
            try:
                fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            except OSError:
                target.unlink()
                return False
        return True
    except ImportError:
        return False


def unwritable(exc: OSError, folder: Path, name: str = "") -> Unavailable:
    """The error for a folder of models that cannot be written, with what helps.

    Args:
        folder: where it was, in case `exc` does not say.
        name: the file of a model that was to be written.
    """
    where = f"{name!r} to `{folder}`" if name else f"`{exc.filename or folder}`"
    if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        help = (
            "choose folders that you can write to: `LLMRR_HOME` for the store, `HF_HOME` for"
            " Hugging Face's cache"
        )
    elif exc.errno == errno.EFBIG:
        help = "no file may be so large here: see `ulimit -f`, or take another file system"
    else:
        help = "what came is kept; make room (`llmrr prune`) and run it again"
    return Unavailable(f"cannot write {where}: {exc.strerror or exc}", hint=help)


def _check_sound(stored: Stored) -> None:
    """Nothing, if every path, hash and the main file could have been written here.

    Raises:
        ValueError: one could not; says which.
    """
    for file in stored.files:
        try:
            safe_path(file.path)
        except BadResponse:
            raise ValueError(f"the file name {file.path[:100]!r}") from None
        if not _SHA256.fullmatch(file.sha256):
            raise ValueError(f"{file.sha256[:80]!r} is no SHA-256")
    if stored.template is not None and not _SHA256.fullmatch(stored.template.sha256):
        raise ValueError(f"{stored.template.sha256[:80]!r} is no SHA-256")
    if stored.main and stored.main not in {file.path for file in stored.files}:
        raise ValueError(f"its main file {stored.main[:100]!r} is not among its files")


def _common(stored: Stored) -> Path | None:
    """The folder outside the store that holds all files under their own names, if there is one."""
    roots = {_above(Path(f.place), f.path) if f.place else None for f in stored.files}
    return roots.pop() if len(roots) == 1 else None


def _above(place: Path, path: str) -> Path | None:
    """The folder that `path` must be in to lie at `place`."""
    parts = path.split("/")
    if place.parts[-len(parts) :] != tuple(parts):
        return None
    return place.parents[len(parts) - 1]


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    """Bytes that deleting it gives back."""
    found = path.lstat()
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _delete(path: Path) -> None:
    """Delete a file or a folder with all that is in it, as far as it can be."""
    if path.is_dir() and not path.is_symlink():
        for inside in path.rglob("*") if os.name == "nt" else ():
            _unprotect(inside)
        shutil.rmtree(path, ignore_errors=True)
    else:
        _unprotect(path)
        path.unlink(missing_ok=True)


def _unprotect(path: Path) -> None:
    """Windows deletes and replaces no file that is read-only, as blobs and links to them are."""
    if os.name == "nt" and path.is_file() and not path.is_symlink():
        path.chmod(stat.S_IWRITE | stat.S_IREAD)


def _gone(name: str, path: Path, what: str) -> ModelFileError:
    return ModelFileError(f"`{name}`: `{path}` {what}", hint=f"`llmrr pull {name}` brings it back")


def _sync_folder(folder: Path) -> None:
    """See that a rename in it survives a power cut, where the system lets us."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
