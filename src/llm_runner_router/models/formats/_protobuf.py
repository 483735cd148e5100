"""Reads the wire format of protocol buffers, bounded, without any message's description.

Knows: tags, varints, fixed numbers, stretches of bytes. Does not know: what fields mean; groups
(deprecated, and refused). Encoding: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import Final

from ._files import Bad

MAX_FIELDS: Final = 1_500_000
"""Fields read of one file. Graphs of language models have some ten thousand nodes of ten fields."""
MAX_TEXT: Final = 4096
"""Bytes of one name or path. A sparse file costs its maker nothing, so a hundred thousand names of
a MiB each would fit one; exporters' longest have some hundred."""
Span = tuple[int, int]
"""A stretch of the file: its first byte, the byte after its last."""


class Message:
    """A cursor over a mapped file that counts what it read."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self._left = MAX_FIELDS

    def fields(self, span: Span) -> Iterator[tuple[int, int | Span]]:
        """The fields in a stretch: number, and the value or the stretch it takes.

        Fixed numbers come as the stretch of their four or eight bytes.

        Raises:
            Bad: a field is cut off, has no number, or there are too many.
        """
        at, end = span
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise Bad(f"it has more than {MAX_FIELDS} fields")
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise Bad(f"a field at byte {at} has the number {number}")
            if wire == 0:
                value, at = self._varint(at, end)
                yield number, value
                continue
            if wire == 2:
                length, at = self._varint(at, end)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise Bad(f"the field {number} at byte {at} has the unknown wire type {wire}")
            if length > end - at:
                raise Bad(f"the field {number} at byte {at} claims {length} bytes, {end - at} left")
            yield number, (at, at + length)
            at += length

    def text(self, span: int | Span) -> str:
        """A stretch as text; bad UTF-8 is replaced.

        Raises:
            Bad: as `raw`, for more than `MAX_TEXT` bytes.
        """
        return self.raw(span, MAX_TEXT).decode("utf-8", "replace")

    def raw(self, span: int | Span, most: int) -> bytes:
        """A stretch's bytes.

        Raises:
            Bad: it is a number, or longer than `most`.
        """
        if isinstance(span, int):
            raise Bad("a text stands there as a number")
        if span[1] - span[0] > most:
            raise Bad(f"a text of {span[1] - span[0]} bytes at byte {span[0]} is too long")
        return bytes(self.data[span[0] : span[1]])

    def varints(self, span: int | Span) -> Iterator[int]:
        """The numbers of a repeated field, packed or not, as signed 64-bit integers."""
        if isinstance(span, int):
            yield _signed(span)
            return
        at, end = span
        while at < end:
            value, at = self._varint(at, end)
            yield _signed(value)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            if at >= end:
                raise Bad(f"a number is cut off at byte {at}")
            byte = self.data[at]
            value |= (byte & 0x7F) << shift
            at += 1
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
            shift += 7
            if shift > 63:
                raise Bad(f"a number at byte {at} has more than ten bytes")


def _signed(value: int) -> int:
    number: int = struct.unpack("<q", struct.pack("<Q", value))[0]
    return number
