"""`multipart/form-data`, piece by piece: bytes in, parts out, bounded by what is in hand.

Knows: RFC 7578 and how browsers write names (https://html.spec.whatwg.org/#multipart-form-data).
Does not know: what the fields mean, sockets. It is strict: what is not a form is refused, and
nothing is guessed.
"""

from __future__ import annotations

import re

from msgspec import Struct

from llm_runner_router.errors import BadRequest

MAX_HEAD = 8 * 1024
"""Bytes of the headers of one part."""
MAX_PARTS = 32
MAX_NAME = 255
"""Characters of a file's name."""
_BOUNDARY = re.compile(
    r"""^\s*multipart/form-data\s*;(?:.*;)?\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))""", re.I
)
_FIELD = re.compile(r""";\s*([A-Za-z*]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))""")
_ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n"}


class Part(Struct, frozen=True):
    """A field begins."""

    name: str
    filename: str | None
    """Its last part, where a path was given."""


class Data(Struct, frozen=True):
    """More of the content of the field that began last."""

    data: bytes


class Parser:
    """Reads one form.

    Args:
        boundary: from the content type; see `boundary_of`.
    """

    def __init__(self, boundary: str) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("latin-1")
        self._held = bytearray(b"\r\n")  # the first delimiter has no line before it
        self._state = "start"
        self._parts = 0

    def feed(self, data: bytes) -> list[Part | Data]:
        """What `data` brings.

        Raises:
            BadRequest: it is not a form, or has too many parts or too long heads.
        """
        self._held += data
        found: list[Part | Data] = []
        while self._step(found):
            pass
        return found

    def end(self) -> None:
        """There is no more.

        Raises:
            BadRequest: the form was cut off.
        """
        if self._state != "done":
            raise _bad("the form ends too early: its last boundary is missing")

    def _step(self, found: list[Part | Data]) -> bool:
        """One step; False if more bytes are needed."""
        if self._state == "body":
            return self._body(found)
        if self._state == "head":
            return self._head(found)
        if self._state == "done":
            self._held.clear()
            return False
        held, delimiter = self._held, self._delimiter
        if self._state == "start":
            if not held.startswith(delimiter[: len(held)]):
                raise _bad("the form does not begin with the boundary of its content type")
            if len(held) < len(delimiter):
                return False
            del held[: len(delimiter)]
        elif len(held) >= 2:  # after a delimiter
            return self._after(bytes(held[:2]))
        else:
            return False
        self._state = "after"
        return True

    def _after(self, two: bytes) -> bool:
        if two == b"--":
            self._state = "done"
        elif two == b"\r\n":
            self._state = "head"
            self._parts += 1
            if self._parts > MAX_PARTS:
                raise _bad(f"the form has over {MAX_PARTS} parts")
        else:
            raise _bad("a boundary of the form is followed by something else")
        del self._held[:2]
        return True

    def _head(self, found: list[Part | Data]) -> bool:
        end = self._held.find(b"\r\n\r\n")
        if end > MAX_HEAD or (end < 0 and len(self._held) > MAX_HEAD):
            raise _bad(f"the headers of a part are over {MAX_HEAD} bytes")
        if end < 0:
            return False
        found.append(_part(bytes(self._held[:end])))
        del self._held[: end + 4]
        self._state = "body"
        return True

    def _body(self, found: list[Part | Data]) -> bool:
        at = self._held.find(self._delimiter)
        sure = at if at >= 0 else len(self._held) - len(self._delimiter) + 1
        if sure > 0:
            found.append(Data(bytes(self._held[:sure])))
            del self._held[:sure]
        if at < 0:
            return False
        del self._held[: len(self._delimiter)]
        self._state = "after"
        return True


def boundary_of(content_type: str) -> str | None:
    """The boundary that a content type names; None if it is no form."""
    found = _BOUNDARY.match(content_type)
    return None if found is None else found[1] or found[2]


def _part(head: bytes) -> Part:
    try:
        lines = head.decode().split("\r\n")
    except UnicodeDecodeError as exc:
        raise _bad("the headers of a part are not UTF-8") from exc
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name.strip().lower() == "content-transfer-encoding":
            if value.strip().lower() not in ("binary", "8bit", "7bit"):
                raise _bad("parts of the form must be sent as they are, without an encoding")
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            return _disposition(value.strip())
    raise _bad("a part of the form has no content-disposition")


def _disposition(value: str) -> Part:
    kind = value.partition(";")[0].strip().lower()
    fields = {key.lower(): _plain(a or b) for key, a, b in _FIELD.findall(value)}
    if kind != "form-data" or not fields.get("name"):
        raise _bad("a part of the form has no name")
    filename = fields.get("filename")
    if filename is not None:
        filename = re.split(r"[\\/]", filename)[-1][-MAX_NAME:]
        filename = "".join(c if c.isprintable() else "?" for c in filename) or "file"
    return Part(fields["name"], filename)


def _plain(text: str) -> str:
    for written, meant in _ESCAPES.items():
        text = text.replace(written, meant)
    return text.replace('\\"', '"')


def _bad(message: str) -> BadRequest:
    return BadRequest(message, code="invalid_form", hint="send `multipart/form-data`")
