"""Amazon's binary event streams (`application/vnd.amazon.eventstream`): frames from bytes and back.

Knows: lengths, checksums and headers of a frame, as AWS describes the encoding. Does not know: what
an event means, JSON, sockets. Pure.

A frame is its length and that of its headers (4 bytes each, big-endian), the CRC-32 of these 8
bytes, headers, payload, and the CRC-32 of all that. Any flipped bit is therefore noticed.
"""

from __future__ import annotations

from struct import Struct as Layout
from struct import error as StructError
from zlib import crc32

from msgspec import Struct

from .errors import BadResponse, StreamBroken

MAX_FRAME = 24 * 1024 * 1024
"""Bytes of a frame; AWS allows 24 MiB of payload, of which an answer of a model needs little."""
MAX_HEADERS = 128 * 1024
"""Bytes of the headers of one frame, as AWS allows them."""
MEDIA_TYPE = "application/vnd.amazon.eventstream"

_PRELUDE = Layout(">III")
_LONG = Layout(">I")
_SHORT = Layout(">H")
_LEAST = _PRELUDE.size + _LONG.size
_STRING = 7
_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Bytes of a header's value by its type: true, false, byte, short, int, long, time, UUID."""
_COUNTED = (6, _STRING)
"""Types whose value has its length in front."""


class Frame(Struct, frozen=True):
    """One message: its headers that are texts, and what it carries."""

    headers: dict[str, str]
    payload: bytes


class FrameSplitter:
    """Feed it chunks cut anywhere; it gives the whole frames they complete, checked.

    Args:
        max_frame: bytes that a frame may have.
    """

    __slots__ = ("_held", "_max", "_need", "_parts")

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max = max_frame
        self._parts: list[bytes] = []
        self._held = 0
        self._need = _PRELUDE.size

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that `chunk` completes, in order.

        Raises:
            BadResponse: a checksum is wrong, or a frame is too long.
        """
        self._parts.append(chunk)
        self._held += len(chunk)
        if self._held < self._need:
            return []
        data = b"".join(self._parts) if len(self._parts) > 1 else chunk
        frames: list[bytes] = []
        start = 0
        while True:
            self._need = self._length(data, start)
            if len(data) - start < self._need:
                break
            frame = data[start : start + self._need]
            (told,) = _LONG.unpack_from(frame, len(frame) - _LONG.size)
            if crc32(memoryview(frame)[: -_LONG.size]) != told:
                raise BadResponse("the checksum of an event is wrong")
            frames.append(frame)
            start += self._need
        self._parts = [data[start:]]
        self._held = len(data) - start
        return frames

    def _length(self, data: bytes, start: int) -> int:
        """How many bytes are needed from `start` on: a frame's, or those that say how long it is.

        The lengths are checked before anything waits for that many bytes.
        """
        if len(data) - start < _PRELUDE.size:
            return _PRELUDE.size
        total, headers, told = _PRELUDE.unpack_from(data, start)
        if crc32(memoryview(data)[start : start + 8]) != told:
            raise BadResponse("the checksum of an event's lengths is wrong")
        if headers > MAX_HEADERS or not headers + _LEAST <= total <= self._max:
            raise BadResponse(f"an event of {total} bytes, {headers} of them headers")
        return int(total)

    def end(self) -> list[bytes]:
        """Nothing: a frame that is not whole cannot be read.

        Raises:
            StreamBroken: the bytes end within a frame.
        """
        if self._held:
            raise StreamBroken("the stream ended within an event")
        return []


def read(frame: bytes) -> Frame:
    """What a whole frame holds; its checksums were looked at by `FrameSplitter`.

    Raises:
        BadResponse: its headers are broken.
    """
    try:
        _, length, _ = _PRELUDE.unpack_from(frame)
        end = _PRELUDE.size + length
        if end + _LONG.size > len(frame):
            raise BadResponse("the headers of an event are longer than it is")
        return Frame(_headers(frame, end), frame[end : -_LONG.size])
    except (StructError, IndexError, UnicodeDecodeError, KeyError):
        raise BadResponse("the headers of an event cannot be read") from None


def _headers(frame: bytes, end: int) -> dict[str, str]:
    found: dict[str, str] = {}
    at = _PRELUDE.size
    while at < end:
        after = at + 1 + frame[at]
        name = frame[at + 1 : after].decode()
        kind = frame[after]
        at = after + 1
        if kind in _COUNTED:
            (size,) = _SHORT.unpack_from(frame, at)
            at += _SHORT.size
            if kind == _STRING:
                found[name] = frame[at : at + size].decode()
            at += size
        else:
            at += _SIZES[kind]
    if at != end:
        raise BadResponse("the headers of an event are cut off")
    return found


def write(headers: dict[str, str], payload: bytes) -> bytes:
    """A frame with these headers, all of them texts, and this payload."""
    parts = []
    for name, value in headers.items():
        key, text = name.encode(), value.encode()
        parts.append(b"%c%b%c%b%b" % (len(key), key, _STRING, _SHORT.pack(len(text)), text))
    told = b"".join(parts)
    lengths = (_LEAST + len(told) + len(payload), len(told))
    prelude = _LONG.pack(lengths[0]) + _LONG.pack(lengths[1])
    message = b"".join((prelude, _LONG.pack(crc32(prelude)), told, payload))
    return message + _LONG.pack(crc32(message))
