"""The table of contents of a zip archive, read strictly.

Knows: the end record, the central directory and the local headers, also of archives over 4 GiB.
Does not know: compression; it says which entries are compressed and unpacks none. Two programs can
be made to see two different archives in one file (two entries of one name, a local header that says
something else); what is not said twice alike is refused.

Layout: PKWARE's APPNOTE 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

from msgspec import Struct
from msgspec.structs import replace

from ._files import MAX_ENTRIES, Bad

MAX_DIRECTORY: Final = 64 * 1024 * 1024
_END, _FAR_END = b"PK\x05\x06", b"PK\x06\x06"


class Entry(Struct, frozen=True):
    """One file: its name, where its bytes begin, how many there are, whether as they are."""

    name: str
    start: int
    bytes: int
    stored: bool = True
    plain: int = 0
    """Bytes it has when unpacked."""
    method: int = 0
    """How it is compressed: 0 is not at all, 8 is deflate."""
    crc: int = 0
    link: bool = False
    """It is a link or a device, as archives from Unix may say."""


def entries(file: BinaryIO) -> dict[str, Entry]:
    """All entries of the archive, by name, in the order of their bytes.

    Raises:
        Bad: it is no sound archive, or a part of it is encrypted.
        OSError: it cannot be read.
    """
    count, start, length = _end(file, file.seek(0, 2))
    if count > 2 * MAX_ENTRIES or length > MAX_DIRECTORY:
        raise Bad(f"its archive claims {count} entries in {length} bytes, too many")
    file.seek(start)
    directory = file.read(length)
    result: dict[str, Entry] = {}
    end = 0
    for entry in sorted(_central(directory, count), key=lambda e: e.start):
        name, header, size = entry.name, entry.start, entry.bytes
        data = _local(file, header, name)
        if header < end or data + size > start:
            raise Bad(f"the entry {name[:80]!r} of its archive overlaps another one")
        if name in result:
            raise Bad(f"the entry {name[:80]!r} stands twice in its archive")
        end = data + size
        result[name] = replace(entry, start=data)
    return result


def _end(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """How many entries there are, and where their directory lies and how long it is."""
    tail = min(size, 65_557)
    file.seek(size - tail)
    content = file.read(tail)
    at = content.rfind(_END)
    if at < 0 or len(content) - at < 22:
        raise Bad("its archive has no end: it is cut short")
    disk, first, here, count, length, start, comment = struct.unpack_from("<4H2IH", content, at + 4)
    if at + 22 + comment != len(content):
        raise Bad("bytes follow the end of its archive")
    end = size - tail + at
    if at >= 20 and content[at - 20 : at - 16] == b"PK\x06\x07":
        count, length, start, end = _far_end(file, content[at - 20 : at], end - 20)
    elif disk or first or here != count:
        raise Bad("its archive is a part of several")
    if start + length > end:
        raise Bad("the directory of its archive lies outside of it")
    return count, start, length


def _far_end(file: BinaryIO, locator: bytes, most: int) -> tuple[int, int, int, int]:
    """The same from the record for large archives, and where that record begins."""
    _, _, at, disks = struct.unpack("<IIQI", locator)
    if at + 56 > most or disks > 1:
        raise Bad("the end of its archive is damaged")
    file.seek(at)
    record = file.read(56)
    if record[:4] != _FAR_END:
        raise Bad("the end of its archive is damaged")
    count, length, start = struct.unpack_from("<3Q", record, 32)
    return count, length, start, at


def _central(directory: bytes, count: int) -> Iterator[Entry]:
    """What the directory says of each entry; `start` is where its local header lies."""
    at = 0
    for _ in range(count):
        if len(directory) - at < 46 or directory[at : at + 4] != b"PK\x01\x02":
            raise Bad("the directory of its archive is damaged")
        flags, method = struct.unpack_from("<2H", directory, at + 8)
        crc, mode = (struct.unpack_from("<I", directory, at + i)[0] for i in (16, 38))
        packed, plain, names, extras, comments = struct.unpack_from("<2I3H", directory, at + 20)
        header = struct.unpack_from("<I", directory, at + 42)[0]
        at += 46
        name = directory[at : at + names].decode("utf-8", "replace")
        extra = directory[at + names : at + names + extras]
        at += names + extras + comments
        if at > len(directory):
            raise Bad("the directory of its archive is damaged")
        packed, plain, header = _far(extra, packed, plain, header)
        if flags & 0x2041:
            raise Bad(f"the entry {name[:80]!r} of its archive is encrypted")
        if packed != plain and not method:
            raise Bad(f"the entry {name[:80]!r} of its archive has two different sizes")
        _plain_name(name)
        # The upper half is Unix's mode, if a Unix made it; its kind is 0 where nothing is said.
        link = mode >> 28 not in (0, 4, 8)
        yield Entry(name, header, packed, not method, plain, method, crc, link)
    if at != len(directory):
        raise Bad("the directory of its archive is damaged")


def _far(extra: bytes, packed: int, plain: int, header: int) -> tuple[int, int, int]:
    """The three numbers, from the field for large archives where they did not fit."""
    wanted = [plain == 0xFFFFFFFF, packed == 0xFFFFFFFF, header == 0xFFFFFFFF]
    at = 0
    while len(extra) - at >= 4 and any(wanted):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            if length < 8 * sum(wanted) or at + 4 + length > len(extra):
                raise Bad("the directory of its archive is damaged")
            values = iter(struct.unpack_from(f"<{sum(wanted)}Q", extra, at + 4))
            plain = next(values) if wanted[0] else plain
            packed = next(values) if wanted[1] else packed
            header = next(values) if wanted[2] else header
            return packed, plain, header
        at += 4 + length
    return packed, plain, header


def _local(file: BinaryIO, at: int, name: str) -> int:
    """Where the bytes of an entry begin; its own header must name it too."""
    file.seek(at)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise Bad(f"the entry {name[:80]!r} of its archive is not where its directory says")
    names, extras = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    if file.read(names).decode("utf-8", "replace") != name:
        raise Bad(f"the entry {name[:80]!r} of its archive has another name in its own header")
    return at + 30 + names + extras


def _plain_name(name: str) -> None:
    if (
        not name.isprintable()
        or name.startswith("/")
        or "\\" in name
        or ":" in name.split("/")[0]
        or ".." in name.split("/")
    ):
        raise Bad(f"the entry {name[:80]!r} of its archive leads out of it")
