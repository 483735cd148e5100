"""The routes of OpenAI's files API: put a file here, list, look, read, delete.

Knows: the form of an upload, the objects of the API. Does not know: where files are kept, and for
how long (`policy/files.py`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, cast
from urllib.parse import parse_qs

import msgspec

from llm_runner_router.errors import BadRequest
from llm_runner_router.policy.files import Draft, File, Purpose

from .base import Gateway
from .exchange import Exchange
from .host import Handler, Host
from .multipart import Parser, Part, boundary_of
from .problems import UnsupportedMedia

MAX_FIELD = 1024
"""Bytes of a field of the form that is no file."""
FORM_BYTES = 64 << 10
"""Bytes of a form beside the file in it."""
PAGE = 10_000
PIECE = 256 << 10
"""Bytes of a file that are read and sent at a time."""
SHORTEST, LONGEST = 3600, 30 * 86_400
"""Seconds that a file may be asked to be kept, as OpenAI limits it."""
PUT = ("batch", "user_data")
"""Purposes of files that clients make."""


class FileRoutes:
    """`/v1/files` and what is below it.

    Args:
        gateway: what keeps.
        host: the application around.
        seconds: how long an upload may take.
    """

    def __init__(self, gateway: Gateway, host: Host, seconds: float) -> None:
        self._gateway = gateway
        self._host = host
        self._seconds = seconds
        self.table: dict[str, dict[str, Handler]] = {
            "/files": {"POST": self._create, "GET": self._list},
            "/files/{file_id}": {"GET": self._get, "DELETE": self._delete},
            "/files/{file_id}/content": {"GET": self._content},
        }

    def find(self, path: str) -> dict[str, Handler] | None:
        """The handlers by method for `path` (without `/v1`); None if it is not one of these."""
        found = self.table.get(path)
        if found is not None or not path.startswith("/files/"):
            return found
        id, slash, last = path.removeprefix("/files/").partition("/")
        return self.table.get(f"/files/{{file_id}}{slash}{last}") if id else None

    async def _create(self, exchange: Exchange, caller: str) -> None:
        kind = exchange.text(b"content-type") or ""
        boundary = boundary_of(kind)
        if boundary is None:
            raise UnsupportedMedia(
                f"the body is {kind[:80]!r}, not a form", hint="send `multipart/form-data`"
            )
        files = self._gateway.files
        with self._host.room():
            draft = files.draft()
            try:
                form = await self._read(exchange, Parser(boundary), draft)
                name, purpose, keep = form.checked()
                made = await files.add(caller, draft, name, purpose, keep)
            except BaseException:
                if exchange.unread:
                    await exchange.discard()
                raise
            finally:
                draft.close()
            await exchange.json(200, msgspec.json.encode(made))

    async def _read(self, exchange: Exchange, parser: Parser, draft: Draft) -> _Form:
        form = _Form()
        limit = self._gateway.files.settings.max_size + FORM_BYTES
        async with aclosing(exchange.pieces(limit, self._seconds)) as pieces:
            async for piece in pieces:
                for event in parser.feed(piece):
                    if isinstance(event, Part):
                        form.begin(event)
                    elif form.in_file:
                        await draft.write(event.data)
                    else:
                        form.add(event.data)
        parser.end()
        return form

    async def _list(self, exchange: Exchange, caller: str) -> None:
        query = query_of(exchange)
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise BadRequest(f"'order' must be asc or desc, not {order[:20]!r}", param="order")
        page, more = await self._gateway.files.page(
            caller,
            after=query.get("after"),
            limit=number(query, "limit", PAGE, PAGE),
            newest_first=order == "desc",
            purpose=query.get("purpose"),
        )
        await exchange.json(200, listed(page, more))

    async def _get(self, exchange: Exchange, caller: str) -> None:
        found: File = await self._gateway.files.get(caller, _id(exchange))
        await exchange.json(200, msgspec.json.encode(found))

    async def _delete(self, exchange: Exchange, caller: str) -> None:
        id = _id(exchange)
        await self._gateway.files.delete(caller, id)
        gone = {"id": id, "object": "file", "deleted": True}
        await exchange.json(200, msgspec.json.encode(gone))

    async def _content(self, exchange: Exchange, caller: str) -> None:
        with self._host.room():
            found, path = await self._gateway.files.open(caller, _id(exchange))
            async with exchange.watching():
                # Opened before the head goes out: deleting it meanwhile does not cut it off.
                content = await asyncio.to_thread(path.open, "rb")
                with content:
                    head = [
                        (b"content-type", b"application/octet-stream"),
                        (b"content-length", str(found.bytes).encode()),
                        (b"x-content-type-options", b"nosniff"),
                    ]
                    await exchange.start(200, head)
                    while data := await asyncio.to_thread(content.read, PIECE):
                        await exchange.send(data)
                    await exchange.end()


class _Form:
    """What the fields of an upload say, as they come."""

    def __init__(self) -> None:
        self.in_file = False
        self._file: str | None = None
        self._name = ""
        self._fields: dict[str, bytes] = {}

    def begin(self, part: Part) -> None:
        """A field begins."""
        self.in_file = part.name == "file"
        if self.in_file:
            if self._file is not None:
                raise BadRequest("there are two files in the form; send one", param="file")
            self._file = part.filename or "file"
        elif part.name in self._fields:
            raise BadRequest(f"{part.name[:100]!r} is there twice", param=part.name[:100])
        else:
            self._name = part.name
            self._fields[part.name] = b""

    def add(self, data: bytes) -> None:
        """More of the field that began last."""
        value = self._fields[self._name] + data
        if len(value) > MAX_FIELD:
            raise BadRequest(f"{self._name[:100]!r} is over {MAX_FIELD} bytes")
        self._fields[self._name] = value

    def checked(self) -> tuple[str, Purpose, float | None]:
        """The file's name, its purpose, and the seconds it is to be kept.

        Raises:
            BadRequest: something is missing or not possible.
        """
        if self._file is None:
            code = "missing_required_parameter"
            raise BadRequest("'file' is missing in the form", param="file", code=code)
        purpose = self._text("purpose")
        if purpose not in PUT:
            told = f"not {purpose[:40]!r}" if purpose else "and is missing"
            raise BadRequest(f"'purpose' must be batch or user_data, {told}", param="purpose")
        return self._file, cast(Purpose, purpose), self._keep()

    def _keep(self) -> float | None:
        seconds = self._text("expires_after[seconds]")
        anchor = self._text("expires_after[anchor]")
        if not seconds and not anchor:
            return None
        return kept_for(anchor, int(seconds) if re.fullmatch(r"\d{1,9}", seconds) else 0)

    def _text(self, name: str) -> str:
        return self._fields.get(name, b"").decode("utf-8", "replace").strip()


def kept_for(anchor: str, seconds: int, param: str = "expires_after") -> float:
    """The seconds of an `expires_after`.

    Raises:
        BadRequest: they, or what they count from, are not possible.
    """
    if anchor != "created_at":
        raise BadRequest(f"'{param}.anchor' must be created_at", param=f"{param}.anchor")
    if not SHORTEST <= seconds <= LONGEST:
        raise BadRequest(
            f"'{param}.seconds' must be {SHORTEST} to {LONGEST}", param=f"{param}.seconds"
        )
    return float(seconds)


def listed(page: Sequence[Any], more: bool) -> bytes:
    """A page of objects that have ids."""
    ends = (page[0].id, page[-1].id) if page else (None, None)
    told = {"object": "list", "data": page, "first_id": ends[0], "last_id": ends[1]}
    return msgspec.json.encode({**told, "has_more": more})


def query_of(exchange: Exchange) -> dict[str, str]:
    """The parameters in the address; the last of each name."""
    text = exchange.scope.get("query_string", b"").decode("ascii", "replace")
    return {name: values[-1] for name, values in parse_qs(text).items()}


def number(query: dict[str, str], name: str, default: int, most: int) -> int:
    """A number of 1 to `most`.

    Raises:
        BadRequest: it is something else.
    """
    text = query.get(name, str(default))
    value = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= value <= most:
        raise BadRequest(f"{name!r} must be 1 to {most}, not {text[:20]!r}", param=name)
    return value


def _id(exchange: Exchange) -> str:
    return exchange.path.rstrip("/").partition("/files/")[2].partition("/")[0]
