"""Server-sent events from bytes, incrementally. Pure.

Knows: the event stream format of the WHATWG HTML standard, section 9.2.6, as far as payloads go.
Does not know: what a payload means, where bytes come from. Event names, ids and retry times are
skipped: the dialects we read repeat the name inside the payload.
"""

from __future__ import annotations

from llm_runner_router.errors import BadResponse

MAX_EVENT = 8 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class SSEParser:
    """Feed it chunks cut anywhere; it gives the payloads of the events they complete.

    A payload is the event's `data` lines joined with a line feed, as bytes: UTF-8 split between
    chunks is whole again by then. Lines may end in LF, CR or CRLF.

    Args:
        max_event: bytes an event may take, its unfinished line included.
    """

    __slots__ = ("_cr", "_data", "_first", "_held", "_line", "_max", "_part")

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._max = max_event
        self._line: list[bytes] = []  # pieces of the unfinished line
        self._data: list[bytes] = []  # data lines of the unfinished event
        self._part = 0  # bytes in _line
        self._held = 0  # bytes in _data, one more per line
        self._cr = False  # the last chunk ended in CR, so a LF at the start of the next is its
        self._first = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """The payloads of the events that `chunk` completes, in order.

        Raises:
            BadResponse: an event is longer than the limit.
        """
        between = not (self._part or self._held or self._cr)
        if between and chunk[:6] == b"data: " and chunk[-2:] == b"\n\n":
            # The usual case: whole events of one data line each. Counting the line feeds proves
            # that there is nothing else in between.
            payloads = chunk[6:-2].split(b"\n\ndata: ")
            if chunk.count(b"\n") == 2 * len(payloads) and b"\r" not in chunk:
                self._first = False
                return payloads
        return self._lines(chunk)

    def end(self) -> list[bytes]:
        """The payload of an event that the end of the stream cut short of its blank line.

        The standard discards it; some upstreams end `data: [DONE]` without the line feeds. A
        payload cut in its middle is not JSON and therefore noticed by whoever reads it.
        """
        last = self._lines(b"\n\n") if self._part or self._held else []
        self._cr = False
        return last

    def _lines(self, chunk: bytes) -> list[bytes]:
        if self._cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
            self._cr = False
        if not chunk:
            return []
        self._cr = chunk[-1:] == b"\r"
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = chunk.split(b"\n")
        rest = lines.pop()
        payloads: list[bytes] = []
        for line in lines:
            if self._line:
                self._line.append(line)
                line = b"".join(self._line)
                self._line.clear()
                self._part = 0
            self._take(line, payloads)
        if rest:
            self._line.append(rest)
            self._part += len(rest)
        if self._part + self._held > self._max:
            raise BadResponse(f"an event is longer than {self._max} bytes")
        return payloads

    def _take(self, line: bytes, payloads: list[bytes]) -> None:
        """One whole line, without its end."""
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if line[:5] == b"data:" or line == b"data":
            value = line[6:] if line[5:6] == b" " else line[5:]
            self._data.append(value)
            self._held += len(value) + 1
        elif not line and self._data:
            payloads.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
            self._data.clear()
            self._held = 0
        # anything else is a comment or a field that is not needed
