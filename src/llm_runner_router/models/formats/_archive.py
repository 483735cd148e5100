"""The files in a packed file, one after the other, whatever packs them: zip, tar, or none.

Knows: how containers are told apart, which names and members are refused, how much may come out.
Does not know: models. Nothing is written here; whoever reads all members has compared every sum.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from msgspec import Struct

from . import _inflate, _tar, _zip
from ._files import Bad
from ._inflate import PIECE, Stream, allowed, bomb

MAX_MEMBERS: Final = 4096
"""Files in an archive. The largest published models have a few hundred."""
MAX_NAME: Final = 255
"""Bytes of a file's or folder's name, as most systems have it."""
MAX_DEPTH: Final = 16
ENDS: Final = (".gz", ".xz", ".bz2", ".zst")
STORED, DEFLATED = 0, 8
JUNK: Final = ("__MACOSX/", ".DS_Store", "Thumbs.db", "desktop.ini")
_METHODS: Final = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 99: "AES"}
_UNPACK: Final = "unpack it yourself, and name the model in it"


class Content(Protocol):
    """What is read of a member."""

    @property
    def consumed(self) -> int:
        """Bytes of the packed file that were read so far."""
        ...

    def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer only at the end, empty behind it."""
        ...


class Member(Struct, frozen=True):
    """A file in a packed file."""

    name: str
    """Its path inside, checked: relative, without `..`."""
    size: int
    """Bytes it unpacks to; -1 where nothing says it."""


class Container(Struct, frozen=True):
    """How a file is packed."""

    kind: str
    """`zip`, `tar`, or empty for a single file that is only compressed."""
    compression: str = ""
    """As `_inflate.kind_of` names it; empty for none."""

    @property
    def words(self) -> str:
        """For messages."""
        if self.kind and self.compression:
            return f"a {self.kind} archive, compressed with {self.compression}"
        return f"a {self.kind} archive" if self.kind else f"compressed with {self.compression}"


def container_of(path: Path, head: bytes) -> Container | None:
    """How the file `path` with the beginning `head` is packed; None if it is not.

    Raises:
        OSError: it cannot be read.
    """
    if head[:4] == b"PK\x03\x04":
        return Container("zip")
    if _tar.is_tar(head):
        return Container("tar")
    compression = _inflate.kind_of(head)
    if not compression:
        return None
    with path.open("rb") as file:
        try:
            block = Stream(file, compression, _size(file)).read(_tar.BLOCK)
        except Bad:
            block = b""
    return Container("tar" if _tar.is_tar(block) else "", compression)


def walk(path: Path, container: Container, look: int = 0) -> Iterator[tuple[Member, Content]]:
    """The files in `path`; the content of each is to be read before the next is asked for.

    Args:
        look: bytes to unpack at most, of all together (in a zip archive: of each), for a look
            inside; what is not read is then not checked. 0 is all.

    Raises:
        Bad: it is damaged, or has something that is refused; says what.
        Enough: `look` bytes are read and there is more.
        OSError: it cannot be read.
    """
    names = _Names()
    with path.open("rb") as file:
        size = _size(file)
        for member, content in _members(path, file, container, size, look):
            if names.takes(member.name):
                yield member, content


def _members(
    path: Path, file: BinaryIO, container: Container, size: int, look: int
) -> Iterator[tuple[Member, Content]]:
    if container.kind == "zip":
        yield from _zipped(file, size, look)
        return
    stream = Stream(file, container.compression, size, look)
    if container.kind == "tar":
        for name, length, content in _tar.walk(stream):
            yield Member(_plain(name), length), content
        return
    name = next((path.name[: -len(end)] for end in ENDS if path.name.lower().endswith(end)), "")
    yield Member(_plain(name or "model"), -1), stream
    while stream.read(PIECE):
        pass


def _size(file: BinaryIO) -> int:
    size = file.seek(0, 2)
    file.seek(0)
    return size


# ---------------------------------------------------------------- names


class _Names:
    """The names seen so far: not too many, and no two for one place."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._count = 0

    def takes(self, name: str) -> bool:
        """Whether a file is one to look at; leftovers of other systems are not.

        Raises:
            Bad: too many, or two names that one file would get on some system.
        """
        self._count += 1
        if self._count > MAX_MEMBERS:
            raise Bad(f"it has more than {MAX_MEMBERS} files", _UNPACK)
        last = name.rpartition("/")[2]
        if name.startswith(JUNK[0]) or last in JUNK or last.startswith("._"):
            return False
        same = unicodedata.normalize("NFC", name).casefold()
        parts = same.split("/")
        folders = {"/".join(parts[:n]) for n in range(1, len(parts))}
        if same in self._files or same in self._folders or folders & self._files:
            raise Bad(f"the entry {name[:80]!r} stands twice in it")
        self._files.add(same)
        self._folders |= folders
        return True


def _plain(name: str) -> str:
    """A name without `./` and doubled slashes.

    Raises:
        Bad: it leads somewhere else, or is no name.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if (
        not name.isprintable()
        or name.startswith("/")
        or "\\" in name
        or ":" in name.split("/")[0]
        or ".." in parts
        or not parts
    ):
        raise Bad(f"the entry {name[:80]!r} leads out of it", "do not use it")
    if len(parts) > MAX_DEPTH or any(len(part.encode()) > MAX_NAME for part in parts):
        raise Bad(f"the name {name[:80]!r} in it is too long")
    return "/".join(parts)


# ---------------------------------------------------------------- zip


def _zipped(file: BinaryIO, size: int, look: int) -> Iterator[tuple[Member, Content]]:
    entries = _zip.entries(file)
    total = sum(entry.plain for entry in entries.values())
    if total > allowed(size):
        raise bomb(size)
    for entry in entries.values():
        name = _plain(entry.name)
        if entry.link:
            raise Bad(f"the entry {name[:80]!r} of its archive is a link or a device, not a file")
        if entry.name.endswith("/"):
            if entry.plain:
                raise Bad(f"the folder {name[:80]!r} of its archive has a content")
            continue
        if entry.method not in (STORED, DEFLATED):
            how = _METHODS.get(entry.method, f"method {entry.method}")
            raise Bad(f"the entry {name[:80]!r} is compressed with {how}", _UNPACK)
        content = _Entry(file, entry)
        yield Member(name, entry.plain), content
        while not look and content.read(PIECE):
            pass


class _Entry:
    """The content of an entry; its sum is compared at its end."""

    def __init__(self, file: BinaryIO, entry: _zip.Entry) -> None:
        self._file = file
        self._entry = entry
        self._at = entry.start
        self._left = entry.bytes
        self._inner = None if entry.stored else _inflate.raw_deflate()
        self._crc = 0
        self._total = 0
        self._done = False

    @property
    def consumed(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        parts = []
        while count > 0 and (part := self._some(min(count, PIECE))):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _some(self, count: int) -> bytes:
        if self._done:
            return b""
        try:
            found = self._stored(count) if self._inner is None else self._inflated(count)
        except zlib.error as exc:
            raise self._damaged(str(exc)[:100]) from None
        self._crc = zlib.crc32(found, self._crc)
        self._total += len(found)
        if self._total > self._entry.plain:
            raise self._damaged(f"it is longer than the {self._entry.plain} bytes it claims")
        if not found:
            self._done = True
            if self._total != self._entry.plain:
                raise self._damaged(f"it has {self._total} of {self._entry.plain} bytes")
            if self._crc != self._entry.crc:
                raise self._damaged("its sum of check is wrong")
        return found

    def _stored(self, count: int) -> bytes:
        self._file.seek(self._at)
        found = self._file.read(min(count, self._left))
        self._at += len(found)
        self._left -= len(found)
        return found

    def _inflated(self, count: int) -> bytes:
        assert self._inner is not None
        while not self._inner.eof:
            data = self._stored(1 << 16) if self._inner.needs_input else b""
            if not data and self._inner.needs_input:
                raise self._damaged("it is cut short")
            found: bytes = self._inner.decompress(data, count)
            if found:
                return found
        if self._inner.unused_data or self._left:
            raise self._damaged("bytes follow its end")
        return b""

    def _damaged(self, why: str) -> Bad:
        return Bad(f"the entry {self._entry.name[:80]!r} of its archive is damaged: {why}")
