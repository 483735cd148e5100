"""The members of a tar archive, read strictly and in order, so that it may come from a stream.

Knows: headers of POSIX (ustar, pax) and GNU's long names. Does not know: compression, what a member
is. Files and folders only: a link or a device is refused, because unpacking one is how an archive
leads out of its folder. Layout: POSIX.1-2017, `pax`, "ustar Interchange Format".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ._files import Bad
from ._inflate import PIECE, Stream

BLOCK: Final = 512
MAX_EXTRA: Final = 1 << 20
"""Bytes of a header that goes before another one; real ones have a few hundred."""
_LINKS: Final = {b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


def is_tar(block: bytes) -> bool:
    """Whether these are the first bytes of a tar archive, by the sum of its first header."""
    return len(block) >= BLOCK and any(block[:BLOCK]) and _sum_is_right(block[:BLOCK])


def walk(stream: Stream) -> Iterator[tuple[str, int, Reader]]:
    """Name, size and content of each file. What is left unread of one is stepped over.

    Raises:
        Bad: it is no sound archive, or has something else than files and folders.
    """
    extra: dict[str, str] = {}
    while True:
        block = stream.read(BLOCK)
        if len(block) == BLOCK and not any(block):
            break
        if len(block) < BLOCK:
            raise Bad("its archive has no end: it is cut short")
        if not _sum_is_right(block):
            raise Bad("a header of its archive is damaged")
        kind, size = block[156:157], _number(block[124:136])
        if kind in (b"x", b"g", b"L", b"K"):
            extra |= _extra(stream, kind, size)
            continue
        name = extra.get("path") or _name(block)
        if "size" in extra:
            size = _digits(extra["size"], 10)
        _check_kind(kind, name, extra)
        extra = {}
        if kind == b"5" or name.endswith("/"):
            if size:
                raise Bad(f"the folder {name[:80]!r} of its archive has a content")
            continue
        if stream.total + size > stream.most:
            raise Bad(f"the entry {name[:80]!r} of its archive claims {size} bytes, too many")
        reader = Reader(stream, size)
        yield name, size, reader
        reader.finish()
    while piece := stream.read(PIECE):
        if any(piece):
            raise Bad("bytes follow the end of its archive")


def _check_kind(kind: bytes, name: str, extra: dict[str, str]) -> None:
    if kind in _LINKS:
        raise Bad(f"the entry {name[:80]!r} of its archive is {_LINKS[kind]}, not a file")
    if kind not in (b"0", b"\0", b"5", b"7") or any(key.startswith("GNU.sparse") for key in extra):
        raise Bad(f"the entry {name[:80]!r} of its archive is of the unknown kind {kind!r}")


class Reader:
    """The content of one member."""

    def __init__(self, stream: Stream, size: int) -> None:
        self._stream = stream
        self._left = size
        self._padding = -size % BLOCK

    @property
    def consumed(self) -> int:
        """Bytes of the packed file that were read so far."""
        return self._stream.consumed

    def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer only at the end.

        Raises:
            Bad: the archive is cut short or damaged.
        """
        found = self._stream.read(min(count, self._left))
        self._left -= len(found)
        if len(found) < count and self._left:
            raise Bad("its archive is cut short inside of an entry")
        return found

    def finish(self) -> None:
        """Step over the rest."""
        while self._left:
            self.read(min(self._left, PIECE))
        if len(self._stream.read(self._padding)) < self._padding:
            raise Bad("its archive is cut short behind an entry")


def _sum_is_right(block: bytes) -> bool:
    try:
        said = _digits(block[148:156].rstrip(b"\0 ").decode("ascii"), 8)
    except (Bad, UnicodeDecodeError):
        return False
    return said == sum(block[:148]) + 8 * 32 + sum(block[156:])


def _number(field: bytes) -> int:
    """A size: octal digits, or GNU's binary where they do not suffice."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    try:
        return _digits(field.strip(b"\0 ").decode("ascii") or "0", 8)
    except UnicodeDecodeError:
        raise Bad("a size in its archive is no number") from None


def _digits(text: str, base: int) -> int:
    text = text.strip()
    if not 0 < len(text) <= 24 or not all(c in "0123456789"[:base] for c in text):
        raise Bad("a number in its archive is none")
    return int(text, base)


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _extra(stream: Stream, kind: bytes, size: int) -> dict[str, str]:
    """What a header says about the next one."""
    if size > MAX_EXTRA:
        raise Bad(f"a header of its archive claims {size} bytes, more than {MAX_EXTRA}")
    content = stream.read(size)
    padding = -size % BLOCK
    if len(content) < size or len(stream.read(padding)) < padding:
        raise Bad("its archive is cut short inside of a header")
    if kind == b"L":
        return {"path": content.rstrip(b"\0").decode("utf-8", "replace")}
    return {} if kind == b"K" else dict(_records(content))


def _records(content: bytes) -> Iterator[tuple[str, str]]:
    """pax: `LENGTH KEY=VALUE` and a line end, again and again."""
    at = 0
    while at < len(content):
        space = content.find(b" ", at, at + 20)
        length = _digits(content[at:space].decode("ascii", "replace"), 10) if space > 0 else 0
        record = content[at : at + length]
        key, equals, value = record[space + 1 - at : -1].partition(b"=")
        if length < 5 or len(record) < length or record[-1:] != b"\n" or not equals:
            raise Bad("a header of its archive is damaged")
        yield key.decode("utf-8", "replace"), value.decode("utf-8", "replace")
        at += length
