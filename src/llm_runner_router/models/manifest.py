"""What a model consists of: its files at a source, and its files on this machine.

Knows: the shape of manifests, and which paths and digests a manifest may name. Does not know: how
a source makes one (`sources/`), how files are brought here (`download.py`), where they lie
(`blobs.py`).

Everything that comes from outside passes `safe_path` and `Digest.parse` before it becomes part of
a path on this machine: a registry that may choose file names may otherwise write anywhere
(CVE-2024-37032 was exactly this).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from llm_runner_router.errors import BadResponse

Algorithm = Literal["sha256", "git"]
MAX_FILES = 4096
MAX_PATH = 512

_HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "git": re.compile(r"[0-9a-f]{40}")}
_BAD_PART = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class Digest(Struct, frozen=True):
    """A content's name: `sha256`, or the SHA-1 that git gives a blob (small files of the Hub)."""

    algorithm: Algorithm
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read `sha256:…` (also `sha256-…`), `git:…`, or a bare SHA-256.

        Raises:
            BadResponse: it is neither; nothing but lower-case hexadecimal gets through.
        """
        head, _, tail = text.replace("-", ":", 1).rpartition(":")
        algorithm: Algorithm = "git" if head == "git" else "sha256"
        if head not in ("", "sha256", "git") or not _HEX[algorithm].fullmatch(tail):
            raise BadResponse(
                f"not a digest: {text[:100]!r}", hint="the source may be damaged; try another one"
            )
        return cls(algorithm, tail)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    def hasher(self, size: int) -> Any:
        """A fresh `hashlib` object whose `hexdigest` must become `hex`, for `size` bytes."""
        if self.algorithm == "sha256":
            return hashlib.sha256()
        made = hashlib.sha1(usedforsecurity=False)
        made.update(b"blob %d\0" % size)  # how git names contents
        return made


class RemoteFile(Struct, frozen=True):
    """One file of a model at its source."""

    path: str
    """Where it belongs in the model's folder, with `/`."""
    size: int | None = None
    """Bytes; None where the source does not say."""
    digest: Digest | None = None
    """What its content must be; None where the source does not say."""
    url: str = ""
    """Where the source reads it."""
    etag: str = ""
    """The version of the content; a download that is continued must meet the same one."""


class Manifest(Struct, frozen=True):
    """A model at its source: which files belong to it and why these."""

    name: str
    """The canonical reference it was asked by."""
    source: str
    """The file name of the source in `sources/`."""
    files: tuple[RemoteFile, ...]
    revision: str = ""
    """The commit, or the digest of the source's own manifest."""
    main: str = ""
    """Path of the file an engine opens; empty: the folder."""
    license: str = ""
    notes: tuple[str, ...] = ()
    """Why these files were chosen, and what came with them, in words."""

    @property
    def size(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(file.size or 0 for file in self.files)


class StoredFile(Struct, frozen=True, omit_defaults=True):
    """One file of a model on this machine."""

    path: str
    size: int
    sha256: str
    place: str = ""
    """Absolute path where it lies outside the store; empty: a blob of the store."""
    ours: bool = False
    """A file outside the store that was put there by a pull, so `rm` may delete it."""


class Override(Struct, frozen=True):
    """A chat template that is used in place of the model's own, which stays as it is."""

    sha256: str
    """Of its text, which is a content of the store."""
    replaces: str
    """SHA-256 of the text it stands for; empty where the model has none. A model whose own template
    is another one by now is used as it is."""
    why: str
    made: float
    """Seconds since 1970."""
    only: str = ""
    """The name that was put into the store for this, and leaves it with this; a copy of the entry
    has another name, and stays."""


class Stored(Struct, frozen=True, omit_defaults=True):
    """A model on this machine, as its name in the store remembers it."""

    name: str
    source: str
    files: tuple[StoredFile, ...]
    revision: str = ""
    main: str = ""
    license: str = ""
    notes: tuple[str, ...] = ()
    pulled: float = 0.0
    """Seconds since 1970."""
    template: Override | None = None
    """The chat template that is used in place of the model's own."""
    version: int = 1
    former: tuple[StoredFile, ...] = ()
    """What the name meant before its source moved on, as far as pulls brought it. It stays until
    `prune` or `rm`, because a server that runs may still answer from it."""
    branch: str = ""
    """The branch or tag of the Hub that the pull made mean `revision`; empty for other sources."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def contents(self) -> set[str]:
        """Hashes of everything that goes with the name, unless another name means it too."""
        found = {file.sha256 for file in (*self.files, *self.former)}
        return found if self.template is None else found | {self.template.sha256}


def safe_path(path: str) -> str:
    """`path` if it stays inside a folder on every system.

    Raises:
        BadResponse: absolute, climbing, hidden in a strange character, reserved or too long.
    """
    parts = path.split("/")
    wrong = (
        not path
        or len(path) > MAX_PATH
        or not path.isprintable()  # control characters, and marks that turn what follows round
        or any(p in ("", ".", "..") or _BAD_PART.search(p) or _RESERVED.fullmatch(p) for p in parts)
        or any(p != p.strip() or p.endswith(".") for p in parts)
        or any(len(p.encode("utf-8", "surrogatepass")) > 255 for p in parts)
    )
    if wrong:
        raise BadResponse(
            f"the source names a file {path[:100]!r}, which must not be written",
            hint="nothing was downloaded; the source may be hostile",
        )
    return path


def check(manifest: Manifest) -> Manifest:
    """`manifest` if every path in it is safe and named once, and its main file is among them.

    Raises:
        BadResponse: says which file and why.
    """
    seen: set[str] = set()
    for file in manifest.files:
        folded = safe_path(file.path).casefold()
        if folded in seen:
            raise BadResponse(f"the source names the file {file.path!r} twice", hint=_BROKEN)
        if file.size is not None and file.size < 0:
            raise BadResponse(f"the source gives {file.path!r} {file.size} bytes", hint=_BROKEN)
        seen.add(folded)
    for name in seen:
        above = name
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in seen:
                raise BadResponse(f"{above!r} is both a file and a folder", hint=_BROKEN)
    if not 1 <= len(manifest.files) <= MAX_FILES:
        raise BadResponse(
            f"`{manifest.name}` has {len(manifest.files)} files; 1 to {MAX_FILES} are possible",
            hint=_BROKEN,
        )
    if manifest.main and manifest.main.casefold() not in seen:
        raise BadResponse(f"the main file {manifest.main!r} is not in the manifest", hint=_BROKEN)
    return manifest


_BROKEN = "the source's list of files is damaged; nothing was downloaded"


def hash_file(path: Path, *digests: Digest) -> dict[str, str]:
    """The SHA-256 of a file, and what it gives for `digests`' algorithms: algorithm to hex.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    hashers = {"sha256": hashlib.sha256()}
    for digest in digests:
        hashers.setdefault(digest.algorithm, digest.hasher(size))
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            for hasher in hashers.values():
                hasher.update(block)
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}
