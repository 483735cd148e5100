"""Compressed bytes as a stream: gzip, xz, bzip2, and Zstandard where this Python has it.

Knows: how each begins, that one file may hold several streams one after the other, how much it may
unpack to. Does not know: what is inside. Memory is bounded by the piece that is asked for and by
`MEMORY`; sums of check are compared by the libraries, so a damaged file is told at its end.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, BinaryIO, Final

from ._files import Bad

MAGICS: Final[dict[str, bytes]] = {
    "gzip": b"\x1f\x8b",
    "xz": b"\xfd7zXZ\x00",
    "bzip2": b"BZh",
    "Zstandard": b"\x28\xb5\x2f\xfd",
}
RATIO: Final = 64
"""Bytes that a packed byte may become. Weights hardly shrink: seldom by more than a third."""
FLOOR: Final = 64 * 1024 * 1024
"""Bytes that the smallest file may become, whatever the ratio."""
MOST: Final = 2 << 40
"""Bytes that any file may become."""
MEMORY: Final = 128 * 1024 * 1024
"""What xz may need to unpack; its highest level needs 65 MiB."""
PIECE: Final = 1 << 20
_FAILURES: Final = (zlib.error, EOFError, OSError, ValueError)
_AGAIN: Final = "pack it anew at a lower level, or unpack it yourself"


class Enough(Exception):
    """As much as a look inside may read is read."""


def allowed(packed: int) -> int:
    """Bytes that a file of `packed` bytes may unpack to."""
    return min(MOST, max(FLOOR, RATIO * packed))


def bomb(packed: int) -> Bad:
    """The refusal of one that unpacks to more."""
    return Bad(
        f"it unpacks to more than {allowed(packed)} bytes, which no model of {packed} packed"
        " bytes does",
        "unpack it yourself if you trust it",
    )


def kind_of(head: bytes) -> str:
    """How a file with this beginning is compressed; empty for none that can be unpacked here."""
    found = next((kind for kind, magic in MAGICS.items() if head.startswith(magic)), "")
    return "" if found == "Zstandard" and _zstd() is None else found


def _zstd() -> Any:
    """The library of Python 3.14 and later."""
    try:
        return import_module("compression.zstd")
    except ImportError:
        return None


class _Zlib:
    """zlib's object with the names of the others."""

    def __init__(self, bits: int) -> None:
        self._inner = zlib.decompressobj(wbits=bits)
        self._left = b""
        self._full = False

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not (self._left or self._full)

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, most: int) -> bytes:
        found = self._inner.decompress(self._left + data, most)
        self._left = self._inner.unconsumed_tail
        self._full = len(found) == most  # it may hold back more, with all of the input taken
        return found


def raw_deflate() -> Any:
    """For an entry of a zip archive, which has neither head nor tail."""
    return _Zlib(-15)


def _maker(kind: str) -> Callable[[], Any]:
    if kind == "gzip":
        return lambda: _Zlib(31)
    if kind == "xz":
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
    if kind == "bzip2":
        return bz2.BZ2Decompressor
    return lambda: _zstd().ZstdDecompressor()


class Stream:
    """The bytes of a file, unpacked if it is compressed.

    Args:
        file: at its beginning.
        kind: how it is compressed; empty for not at all.
        size: bytes of the file.
        look: bytes after which `Enough` is raised; 0 for none.
    """

    def __init__(self, file: BinaryIO, kind: str, size: int, look: int = 0) -> None:
        self._file = file
        self._make = _maker(kind) if kind else None
        self._kind = kind
        self._inner: Any = self._make() if self._make else None
        self._size = size
        self._look = look
        self._rest = b""
        self.total = 0
        """Bytes given so far."""
        self.most = allowed(size)

    def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer only at the end.

        Raises:
            Bad: it is damaged, cut short, or unpacks to more than it may.
            Enough: it was to be looked into only.
        """
        parts = []
        while count > 0 and (part := self._some(min(count, PIECE))):
            parts.append(part)
            count -= len(part)
            self.total += len(part)
            if self.total > self.most:
                raise bomb(self._size)
            if self._look and self.total > self._look:
                raise Enough
        return b"".join(parts)

    @property
    def consumed(self) -> int:
        """Bytes of the file that were read."""
        return self._file.tell()

    def _some(self, count: int) -> bytes:
        if self._inner is None:
            return self._file.read(count)
        try:
            return self._unpacked(count)
        except (MemoryError, lzma.LZMAError) as exc:
            if "emory" not in str(exc):
                raise Bad(f"it is compressed with xz, but damaged: {str(exc)[:200]}") from None
            raise Bad(f"it takes more than {MEMORY} bytes of memory to unpack", _AGAIN) from None
        except _FAILURES as exc:
            raise Bad(
                f"it is compressed with {self._kind}, but damaged: {str(exc)[:200]}"
            ) from None

    def _unpacked(self, count: int) -> bytes:
        while True:
            if self._inner.eof:
                if not self._another():
                    return b""
            data = self._rest
            self._rest = b""
            if not data and self._inner.needs_input:
                data = self._file.read(1 << 16)
                if not data:
                    raise EOFError("it is cut short")
            found: bytes = self._inner.decompress(data, count)
            if found:
                return found

    def _another(self) -> bool:
        """Begin the next of several streams; False at the end."""
        assert self._make is not None
        rest = self._inner.unused_data.lstrip(b"\0") or self._file.read(1 << 16).lstrip(b"\0")
        if not rest:
            while piece := self._file.read(1 << 16):
                if rest := piece.lstrip(b"\0"):
                    break
            if not rest:
                return False
        if len(rest) < 6:
            rest += self._file.read(6)
        if not rest.startswith(MAGICS[self._kind]):
            raise ValueError("bytes follow its end")
        self._inner = self._make()
        self._rest = rest
        return True
