"""One question to a runner's private address that is not about an answer: its slots, for example.

Knows: as much of HTTP/1.1 as the engine's server writes on a connection that closes after one
answer. Does not know: what is asked. Clients' requests go another way (`local.py`, `connect`);
this one has no pool, so a runner that ends leaves nothing half open.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import msgspec

from llm_runner_router.errors import EngineError

MOST = 4 * 1024 * 1024
"""Bytes of an answer that are read."""


async def call(
    address: str, key: str, method: str, path: str, body: object = None, *, seconds: float
) -> Any:
    """The decoded JSON that a runner answers; of an event stream, the last event.

    Leaving (also by the deadline) closes the connection, which ends a streamed answer.

    Args:
        address: as the runner reported it, `http://host:port`.
        key: the runner's own key.
        path: with its query.
        body: sent as JSON; None sends none.
        seconds: deadline for the whole.

    Raises:
        EngineError: no answer in time, none that can be read, or a status other than 200; carries
            what the engine said.
    """
    where = urlsplit(address)
    data = b"" if body is None else msgspec.json.encode(body)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        "Connection: close\r\n\r\n"
    )
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            try:
                writer.write(head.encode() + data)
                raw = await _all(reader)
            finally:
                writer.close()
    except TimeoutError:
        raise EngineError(f"the runner did not answer {path} within {seconds:g} s") from None
    except (OSError, ValueError) as exc:
        raise EngineError(f"the runner did not answer {path}: {exc}") from exc
    return read(raw, path)


async def _all(reader: asyncio.StreamReader) -> bytes:
    raw = bytearray()
    while piece := await reader.read(65536):
        raw += piece
        if len(raw) > MOST:
            raise ValueError(f"more than {MOST} bytes")
    return bytes(raw)


def read(raw: bytes, path: str = "") -> Any:
    """The JSON of a whole HTTP answer. Pure.

    Raises:
        EngineError: as `call`.
    """
    head, gap, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = lines[0].split(" ", 2)[1:2]
    if not gap or not status:
        raise EngineError(f"the runner's answer to {path} broke off")
    headers = {k.strip().lower(): v.strip() for k, _, v in (li.partition(":") for li in lines[1:])}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = _joined(body, path)
    if status != ["200"]:
        words = body[:300].decode("utf-8", "replace")
        raise EngineError(f"the runner answered {path} with {status[0]}: {words}")
    if headers.get("content-type", "").startswith("text/event-stream"):
        events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
        body = events[-1] if events else b""
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as exc:
        raise EngineError(f"the runner's answer to {path} is no JSON: {exc}") from exc


def _joined(body: bytes, path: str) -> bytes:
    """The chunks of a body without their sizes."""
    parts: list[bytes] = []
    while body:
        size, _, body = body.partition(b"\r\n")
        try:
            count = int(size.split(b";")[0], 16)
        except ValueError:
            break
        if count == 0:
            return b"".join(parts)
        if count > len(body):
            break
        parts.append(body[:count])
        body = body[count + 2 :]
    raise EngineError(f"the runner's answer to {path} broke off")
