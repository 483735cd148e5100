"""Servers that say one thing and do another, byte by byte as they would send it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    ConnectFailed,
    Unavailable,
    UpstreamTimeout,
)
from llm_runner_router.models.sources._http import Http, number

from .rigging import Rig

Answer = Callable[[str], bytes]
"""From the first line of a request to everything that is sent back."""
OK = "HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def serving(answer: Answer, *, drip: bytes = b"") -> AsyncIterator[str]:
    """A server's address; after its answer it repeats `drip` until nobody listens."""
    busy: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(head.partition(b"\r\n")[0].decode("latin-1")))
            await writer.drain()
            while drip:
                writer.write(drip)
                await writer.drain()
                await asyncio.sleep(0.001)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        busy.add(task)
        try:
            await one(reader, writer)
        finally:
            busy.discard(task)

    server = await asyncio.start_server(tracked, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(busy):
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)


def always(text: str) -> Answer:
    return lambda line: text.encode("latin-1")


async def test_a_length_of_thousands_of_digits_is_none(rig: Rig) -> None:
    digits = "9" * 5000
    async with serving(always(f"{OK}Content-Length: {digits}\r\n\r\nGGUF")) as url:
        stored = await rig.pull(f"{url}/a.gguf")
    assert rig.content(stored) == b"GGUF"
    assert number(digits) is None
    assert number("٣") is None
    assert number("12") == 12


@pytest.mark.parametrize(
    "location", ["http://[bad/", "http://h:99999/", "http://h:x/", "file:///etc/passwd"]
)
async def test_redirects_to_no_address(rig: Rig, location: str) -> None:
    answer = always(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n")
    async with serving(answer) as url:
        with pytest.raises(BadResponse, match="redirects to nothing usable"):
            await rig.pull(f"{url}/a.gguf")


@pytest.mark.parametrize("address", ["http://127.0.0.1:99999/a.gguf", "http://[bad/a.gguf"])
async def test_addresses_that_are_none(rig: Rig, address: str) -> None:
    with pytest.raises(BadRequest, match="is no address"):
        await rig.pull(address)
    http = Http({})
    with pytest.raises(ConnectFailed, match="not an address"):
        async with http.get(address):
            pass
    http.close()


async def test_a_redirect_in_raw_bytes_is_followed(rig: Rig) -> None:
    asked: list[str] = []

    def answer(line: str) -> bytes:
        asked.append(line)
        if "/a.gguf" in line:
            return "HTTP/1.1 302 Found\r\nLocation: /ä%20b c\r\n\r\n".encode()
        return f"{OK}Content-Length: 4\r\n\r\n".encode() + (b"GGUF" if "GET" in line else b"")

    async with serving(answer) as url:
        stored = await rig.pull(f"{url}/a.gguf")
    assert rig.content(stored) == b"GGUF"
    assert asked[1] == "HEAD /%C3%A4%20b%20c HTTP/1.1"


async def test_a_part_that_nobody_asked_for(rig: Rig) -> None:
    def answer(line: str) -> bytes:
        if line.startswith("HEAD"):
            return OK.encode() + b"\r\n"
        return b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-3/9\r\n\r\nGGUF"

    async with serving(answer) as url:
        with pytest.raises(BadResponse, match="gives a part of"):
            await rig.pull(f"{url}/a.gguf")
    assert not rig.drafts() or not rig.puller().store.names()


@pytest.mark.parametrize("status", ["403 Forbidden", "405 Method Not Allowed"])
async def test_a_server_that_wants_no_head(rig: Rig, status: str) -> None:
    def answer(line: str) -> bytes:
        if line.startswith("HEAD"):
            return f"HTTP/1.1 {status}\r\n\r\n".encode()
        return f"{OK}Content-Length: 4\r\n\r\nGGUF".encode()

    async with serving(answer) as url:
        stored = await rig.pull(f"{url}/a.gguf")
    assert rig.content(stored) == b"GGUF"


@pytest.mark.parametrize(
    ("start", "drip"),
    [(OK, b"X: y\r\n"), ("", b"HTTP/1.1 100 Continue\r\n\r\n")],
    ids=["headers", "continue"],
)
async def test_a_head_without_an_end(start: str, drip: bytes) -> None:
    http = Http({}, patience=0.2)
    async with serving(always(start), drip=drip) as url:
        with pytest.raises((UpstreamTimeout, BadResponse)):
            async with http.get(url):
                pass
    http.close()


async def test_a_body_without_an_end_stops_before_the_disk_is_full(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage
    drafts = rig.puller().store.partial

    def shrinking(path: Path) -> object:
        """What came counts for a gigabyte a byte."""
        came = sum(draft.stat().st_blocks for draft in drafts.glob("*.part"))
        return usage(path) if not came else SimpleNamespace(free=0)

    monkeypatch.setattr(shutil, "disk_usage", shrinking)
    async with serving(always(f"{OK}\r\n"), drip=bytes(1 << 16)) as url:
        with pytest.raises(Unavailable, match="no length"):
            await rig.pull(f"{url}/a.gguf")
    assert not list(drafts.glob("*.part"))
