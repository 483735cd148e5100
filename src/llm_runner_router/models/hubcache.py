"""Hugging Face's cache on this machine: finding a model in it and putting files into it.

Knows: its published layout (https://huggingface.co/docs/huggingface_hub/guides/manage-cache): blobs
by ETag, snapshots of links by commit, refs from branch to commit, locks. Does not know: the Hub
(`sources/huggingface.py`). Nothing of `huggingface_hub` is imported here, so that looking takes
milliseconds; the tests hold this against that package's own reading and writing of the same cache.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from .locks import FileLock
from .manifest import Digest, RemoteFile, safe_path

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
DRAFT = ".llmrr-draft"
"""Ending of links and branches that are being written."""
_UNFINISHED = (".part", ".journal", ".adopted")
"""Endings of what `partial.py` and `pull.py` leave beside blobs when they are stopped."""
PATIENCE = 5.0
"""Seconds that deleting waits for a program which holds the same content."""
TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# This file marks a folder whose content can be fetched again (bford.info/cachedir).\n"
)


def folder(environ: Mapping[str, str]) -> Path:
    """Where the cache is, by the variables everybody reads."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return Path(os.path.expandvars(environ[name])).expanduser()
    if environ.get("HF_HOME"):
        return Path(os.path.expandvars(environ["HF_HOME"])).expanduser() / "hub"
    above = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(above).expanduser() / "huggingface" / "hub"


class Snapshot(Struct, frozen=True):
    """One revision of a repository, as far as it is here."""

    repo: str
    commit: str
    path: Path
    refs: tuple[str, ...] = ()


class HubCache:
    """The cache in one folder. Naming it creates nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def repo(self, name: str) -> Path:
        """The folder of `org/repo`."""
        return self.path / ("models--" + name.replace("/", "--"))

    # ------------------------------------------------------------ reading

    def snapshots(self) -> Iterator[Snapshot]:
        """Every revision of every model that is here."""
        try:
            folders = sorted(self.path.glob("models--*"))
        except OSError:
            return
        for repo in folders:
            name = repo.name.removeprefix("models--").replace("--", "/", 1)
            refs = self._refs(repo)
            for snapshot in sorted((repo / "snapshots").glob("*")):
                if snapshot.is_dir():
                    named = tuple(ref for ref, commit in refs.items() if commit == snapshot.name)
                    yield Snapshot(name, snapshot.name, snapshot, named)

    def snapshot(self, name: str, revision: str | None) -> Snapshot | None:
        """The revision of `org/repo` that a branch, tag or commit means here."""
        repo = self.repo(name)
        refs = self._refs(repo)
        revision = revision or "main"
        commit = revision if _COMMIT.fullmatch(revision) else refs.get(revision)
        if commit is None or not (repo / "snapshots" / commit).is_dir():
            return None
        return Snapshot(name, commit, repo / "snapshots" / commit, (revision,))

    @staticmethod
    def _refs(repo: Path) -> dict[str, str]:
        found = {}
        for path in sorted((repo / "refs").rglob("*")):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if path.name.startswith(".") or not path.is_file():
                    continue  # no branch is called so
                commit = path.read_text("utf-8").strip()
                if _COMMIT.fullmatch(commit):
                    found[path.relative_to(repo / "refs").as_posix()] = commit
        return found

    def by_sha256(self, sha256: str) -> Path | None:
        """A file of that hash in any repository; large files are named by it."""
        assert _SHA256.fullmatch(sha256), "digests are checked where they come in"
        return next(iter(self.path.glob(f"models--*/blobs/{sha256}")), None)

    def digest_of(self, path: Path) -> Digest | None:
        """What the content of a file in a snapshot must be, by the name of its blob."""
        try:
            name = path.resolve(strict=True).name
        except OSError:
            return None
        if _SHA256.fullmatch(name):
            return Digest("sha256", name)
        return Digest("git", name) if _COMMIT.fullmatch(name) else None

    # ------------------------------------------------------------ writing

    def blob(self, repo: str, file: RemoteFile) -> Path | None:
        """Where the content of a file belongs; None where the Hub gives no digest for it."""
        return None if file.digest is None else self.repo(repo) / "blobs" / file.digest.hex

    def lock(self, repo: str, key: str) -> FileLock:
        """The lock that every downloader of this cache takes for one content."""
        return FileLock(self._lock_of(self.repo(repo), key))

    def _lock_of(self, repo: Path, key: str) -> Path:
        return self.path / ".locks" / repo.name / f"{key}.lock"

    def commit(self, repo: str, draft: Path, file: RemoteFile) -> Path:
        """A verified file becomes a blob.

        Raises:
            OSError: it cannot be moved there.
        """
        blob = self.blob(repo, file)
        assert blob is not None, "who commits has checked a digest"
        blob.parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft, blob)
        return blob

    def place(self, repo: str, commit: str, file: RemoteFile) -> Path:
        """The file's own name in the snapshot."""
        return self.repo(repo) / "snapshots" / commit / safe_path(file.path)

    def point(self, repo: str, commit: str, file: RemoteFile) -> Path:
        """Make the file's own name in the snapshot a link to its blob.

        Raises:
            OSError: the folder cannot be written.
        """
        blob = self.blob(repo, file)
        assert blob is not None, "who points has checked a digest"
        at = self.place(repo, commit, file)
        at.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if at.samefile(blob):
                return at
        # Not its own name with an ending: that may be as long as a name can be.
        draft = at.with_name(f".{blob.name[:40]}.{secrets.token_hex(4)}{DRAFT}")
        try:
            draft.symlink_to(os.path.relpath(blob, at.parent))
        except OSError:  # a file system without links
            shutil.copyfile(blob, draft)
        os.replace(draft, at)
        return at

    def name(self, repo: str, revision: str, commit: str) -> None:
        """Remember that a branch or tag means a commit, and mark the folder as a cache.

        Raises:
            OSError: the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        tag = self.path / "CACHEDIR.TAG"
        if not tag.exists():
            tag.write_bytes(TAG)
        if _COMMIT.fullmatch(revision):
            return
        at = self.repo(repo) / "refs" / safe_path(revision)
        at.parent.mkdir(parents=True, exist_ok=True)
        draft = at.with_name(f".{at.name[:200]}.{secrets.token_hex(4)}{DRAFT}")
        draft.write_text(commit, "utf-8")
        os.replace(draft, at)

    def branches(self, path: Path) -> set[str]:
        """The branches and tags that mean the snapshot in which `path` lies."""
        inside = self._inside(path)
        if len(inside) < 4 or inside[1] != "snapshots":
            return set()
        return {ref for ref, to in self._refs(self.path / inside[0]).items() if to == inside[2]}

    def repo_of(self, path: Path) -> str:
        """The name of the folder of the repository to which `path` belongs; empty: to none here."""
        inside = self._inside(path)
        return inside[0] if inside else ""

    def _inside(self, path: Path) -> tuple[str, ...]:
        """The parts of its path below this folder; none where it leads elsewhere."""
        try:
            parts = path.relative_to(self.path).parts
        except ValueError:
            return ()
        return () if ".." in parts else parts

    def remove(self, path: Path) -> int:
        """Delete a file of a snapshot, and its blob if no other snapshot has it: bytes freed.

        Raises:
            OSError: it cannot be deleted.
            Unavailable: another program is bringing the same content.
        """
        inside = self._inside(path)
        if not inside:
            return 0
        repo = self.path / inside[0]
        blob = Path(os.path.realpath(path))
        freed = 0
        # Who links to a blob that is there already holds this lock, too.
        with FileLock(self._lock_of(repo, blob.name), patience=PATIENCE):
            path.unlink(missing_ok=True)
            others = (p for p in (repo / "snapshots").rglob("*") if p.is_symlink())
            used = any(Path(os.path.realpath(other)) == blob for other in others)
            if blob.parent == Path(os.path.realpath(repo / "blobs")) and not used:
                with contextlib.suppress(FileNotFoundError):
                    freed = blob.stat().st_size
                    blob.unlink()
        for above in path.parents:
            if above in (repo / "snapshots", repo, self.path):
                break
            with contextlib.suppress(OSError):
                above.rmdir()  # only if it is empty
        self._tidy(repo)
        return freed

    def prune(self, before: float) -> tuple[int, int]:
        """Delete our own unfinished downloads that nobody has touched since `before`.

        No pull may run meanwhile (`Store.collecting`).

        Args:
            before: seconds since 1970.

        Returns:
            Files and bytes that are gone.
        """
        files = size = 0
        for kind in ("snapshots", "refs"):
            for path in self.path.glob(f"models--*/{kind}/**/.*{DRAFT}"):
                with contextlib.suppress(OSError):
                    path.unlink()
        for path in sorted(self.path.glob("models--*/blobs/*")):
            if path.suffix not in _UNFINISHED:
                continue
            repo = path.parent.parent
            lock = FileLock(self._lock_of(repo, path.name.split(".")[0]))
            with contextlib.suppress(OSError):
                found = path.lstat()
                if found.st_mtime >= before or not lock.take():
                    continue
                try:
                    path.unlink()
                finally:
                    lock.free()
                files, size = files + 1, size + found.st_size
                self._tidy(repo)
        return files, size

    def _tidy(self, repo: Path) -> None:
        """Forget branches whose snapshot is gone, and a repository of which nothing is left."""
        left = {snapshot.name for snapshot in (repo / "snapshots").glob("*")}
        for ref, commit in self._refs(repo).items():
            if commit not in left:
                (repo / "refs" / ref).unlink(missing_ok=True)
        if not left and not any((repo / "blobs").glob("*")):
            shutil.rmtree(repo, ignore_errors=True)
