"""What arrives on the socket when clients are slow, rude, broken or hostile."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llm_runner_router.config import Server
from llm_runner_router.errors import StreamBroken
from llm_runner_router.server import bind, url_of
from llm_runner_router.server_listen import GuardedProtocol, Listener
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeTarget, Gate, deltas_of
from llm_runner_router.types import Call, Delta, Request

CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
STREAM = CHAT[:-1] + b', "stream": true}'
AUTH = f"authorization: Bearer {KEY}\r\n".encode()


class Quick(GuardedProtocol):
    """Guards that bite at once."""

    head_seconds = 0.05
    body_seconds = 0.05
    stall_seconds = 0.05


@asynccontextmanager
async def served(
    target: FakeTarget | None = None,
    *,
    protocol: type[GuardedProtocol] = GuardedProtocol,
    body_seconds: float | None = None,
    **settings: Any,
) -> AsyncIterator[int]:
    gateway = FakeGateway({"m": target or FakeTarget("m", deltas_of("a b"))})
    limits = Server(port=0, **settings)
    with bind(limits) as listening:
        listener = Listener(gateway, limits, listening, protocol=protocol)
        if body_seconds is not None:
            listener.app.body_seconds = body_seconds
        await listener.start()
        try:
            yield int(url_of(listening).rpartition(":")[2])
        finally:
            await listener.close(0)
    assert listener.app.busy == 0


async def talk(port: int, *pieces: bytes, half_close: bool = False) -> bytes:
    """Send and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if half_close:
            writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def request(
    path: str = "/v1/chat/completions",
    body: bytes = CHAT,
    *,
    method: str = "POST",
    headers: bytes = AUTH,
    length: int | None = None,
) -> bytes:
    size = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n".encode()
    return head + b"content-length: %d\r\n" % size + headers + b"\r\n" + body


def parsed(answer: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, json.loads(body) if body else None


# ---------------------------------------------------------------- routes


async def test_only_health_and_a_page_without_data_answer_without_a_key() -> None:
    async with served() as port:
        assert (
            parsed(await talk(port, request("/healthz", b"", method="GET", headers=b"")))[0] == 200
        )
        for method, path in [
            ("GET", "/livez"),
            ("GET", "/readyz"),
            ("GET", "/v1/models"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/completions"),
            ("POST", "/v1/embeddings"),
            ("POST", "/v1/tokenize"),
            ("POST", "/v1/detokenize"),
            ("GET", "/llmrr/ps"),
            ("POST", "/llmrr/shutdown"),
            ("GET", "/"),
            ("GET", "/openapi.json"),
            ("GET", "/docs/"),
            ("GET", "/v1/docs"),
            ("GET", "/healthz/"),
            ("GET", "//healthz"),
            ("GET", "/healthz/../v1/models"),
            ("GET", "/nothing"),
            ("DELETE", "/v1/models"),
        ]:
            status, headers, body = parsed(
                await talk(port, request(path, b"", method=method, headers=b""))
            )
            assert status == 401, path
            assert headers["www-authenticate"] == "bearer"
            assert body["error"]["code"] == "missing_api_key"


async def test_the_key_is_checked_before_the_body_is_read() -> None:
    async with served() as port:
        answer = await talk(port, request(body=b"", headers=b"", length=10_000))
    assert parsed(answer)[0] == 401


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1/chat/completion", 404, "did you mean `/v1/chat/completions`"),
        ("GET", "/llmrr/pss", 404, "did you mean `/llmrr/ps`"),
        ("POST", "/v1/", 404, "there is no route"),
        ("GET", "/v1/chat/completions", 405, "takes POST, not GET"),
        ("DELETE", "/v1/models/m", 405, "takes GET, not DELETE"),
        ("POST", "/healthz", 405, "takes GET"),
    ],
)
async def test_wrong_routes_say_what_is_near(
    method: str, path: str, status: int, words: str
) -> None:
    async with served() as port:
        got, headers, body = parsed(await talk(port, request(path, b"", method=method)))
    assert got == status
    assert words in body["error"]["message"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert ("allow" in headers) == (status == 405)


async def test_with_and_without_v1_and_with_a_slash_at_the_end() -> None:
    async with served() as port:
        for path in ("/v1/models", "/models", "/v1/models/", "/v1/models/m", "/models/m?x=1"):
            assert parsed(await talk(port, request(path, b"", method="GET")))[0] == 200, path
        answer = await talk(port, request("/v1/models", b"", method="HEAD"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("host", [b"evil.example", b"/healthz", b"x/healthz?", b"\xff\x00"])
async def test_the_host_header_decides_nothing(host: bytes) -> None:
    raw = request("/v1/models", b"", method="GET", headers=b"").replace(
        b"host: x", b"host: " + host
    )
    async with served() as port:
        answer = await talk(port, raw)
    assert b" 401 " in answer[:20] or b" 400 " in answer[:20], answer


# ---------------------------------------------------------------- bodies


async def test_a_body_that_announces_too_much_is_refused_unread() -> None:
    async with served(max_body=2000) as port:
        status, headers, body = parsed(
            await talk(
                port, request(body=b"", length=2001, headers=AUTH + b"expect: 100-continue\r\n")
            )
        )
    assert status == 413
    assert headers["connection"] == "close"
    assert "2000 bytes" in body["error"]["message"]


async def test_a_chunked_body_that_is_too_large_is_refused_while_it_comes() -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    async with served(max_body=2000) as port:
        pieces = [b"3e8\r\n" + b"x" * 1000 + b"\r\n"] * 5
        answer = await talk(port, head + AUTH + b"\r\n", *pieces, b"0\r\n\r\n")
        assert parsed(answer)[0] == 413
        whole = b"%x\r\n" % len(CHAT) + CHAT + b"\r\n0\r\n\r\n"
        answer = await talk(port, head + AUTH + b"connection: close\r\n\r\n" + whole)
        assert parsed(answer)[0] == 200


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    body = CHAT + b" " * (2000 - len(CHAT))
    async with served(max_body=2000) as port:
        assert parsed(await talk(port, request(body=body)))[0] == 200


async def test_a_body_that_does_not_come_gets_408() -> None:
    async with served(body_seconds=0.05) as port:
        answer = await talk(port, request(length=len(CHAT) + 5))
    assert parsed(answer)[0] == 408
    assert parsed(answer)[2]["error"]["code"] == "body_timeout"


async def test_a_body_in_many_small_pieces() -> None:
    raw = request()
    async with served() as port:
        answer = await talk(port, *(raw[i : i + 7] for i in range(0, len(raw), 7)))
    assert parsed(answer)[0] == 200


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        (b"text/plain", CHAT, 200),
        (b"", CHAT, 200),
        (b"text/plain", b"hello", 415),
        (b"multipart/form-data; boundary=x", b"--x", 415),
        (b"application/json", b"{", 400),
        (b"application/json", CHAT + b"\xff", 400),
    ],
)
async def test_the_content_type_matters_only_when_the_body_cannot_be_read(
    kind: bytes, body: bytes, status: int
) -> None:
    headers = AUTH + (b"content-type: " + kind + b"\r\n" if kind else b"")
    async with served() as port:
        assert parsed(await talk(port, request(body=body, headers=headers)))[0] == status


async def test_a_compressed_body_is_refused() -> None:
    async with served() as port:
        answer = await talk(port, request(headers=AUTH + b"content-encoding: gzip\r\n"))
    assert parsed(answer)[0] == 415


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_offer_of_another_protocol_is_ignored_and_the_body_is_read(chunked: bool) -> None:
    """Java's HTTP client offers h2c with every request; the connection stays usable, too."""
    offer = b"Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    raw = request(headers=AUTH + offer).replace(b"connection: close\r\n", b"")
    if chunked:
        size = b"content-length: %d\r\n" % len(CHAT)
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(CHAT), CHAT)
        raw = raw.replace(size, b"transfer-encoding: chunked\r\n").replace(CHAT, body)
    listing = request("/v1/models", b"", method="GET", headers=AUTH + offer)
    half = len(raw) - 20
    async with served() as port:
        answer = await talk(port, raw[:half], raw[half:], raw, listing)
    assert [a[:3] for a in answer.split(b"HTTP/1.1 ")[1:]] == [b"200"] * 3, answer


# ---------------------------------------------------------------- heads


async def test_a_head_request_is_answered_on_a_connection_that_stays() -> None:
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert parsed(head)[0] == 200
        writer.close()


async def test_fields_after_the_body_do_not_change_the_head() -> None:
    chunked = b"%x\r\n%s\r\n0\r\n" % (len(CHAT), CHAT)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    async with served() as port:
        answer = await talk(port, head + b"connection: close\r\n\r\n" + chunked + AUTH + b"\r\n")
        assert parsed(answer)[0] == 401, "a key in a trailer is no key"
        many = b"".join(b"x-%d: %s\r\n" % (i, b"y" * 1000) for i in range(200))
        assert await talk(port, head + AUTH + b"\r\n" + chunked + many) == b"", "without bound"


async def test_many_or_large_headers_are_refused() -> None:
    many = AUTH + b"".join(b"x-%d: y\r\n" % i for i in range(200))
    large = AUTH + b"x: " + b"y" * 70_000 + b"\r\n"
    async with served() as port:
        assert parsed(await talk(port, request(headers=many)))[0] == 431
        assert parsed(await talk(port, request(headers=large)))[0] == 431
        endless = [b"GET / HTTP/1.1\r\nx: ", *[b"y" * 30_000] * 10]
        answer = await talk(port, *endless)
    assert answer == b"" or parsed(answer)[0] == 431


@pytest.mark.parametrize(
    "raw",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_400_in_our_shape(raw: bytes) -> None:
    async with served() as port:
        status, headers, body = parsed(await talk(port, raw))
    assert status == 400
    assert headers["connection"] == "close"
    assert body["error"]["code"] == "invalid_http"


async def test_a_connection_that_says_nothing_is_ended() -> None:
    async with served(protocol=Quick) as port:
        assert await talk(port) == b""
        assert await talk(port, b"POST /v1/chat") == b""
        assert await talk(port, request(length=10_000)) == b""


async def test_a_kept_connection_serves_one_request_after_another() -> None:
    raw = request().replace(b"connection: close\r\n", b"")
    async with served(protocol=Quick) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(raw)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(size)
        writer.write(raw + raw)  # pipelined
        got = b""
        while got.count(b"HTTP/1.1 200") < 2 or not got.endswith(b"}"):
            got += await reader.read(65536)
        writer.close()


async def test_hostile_heads_are_never_let_in_and_never_break_anything() -> None:
    rng = random.Random(11)
    pieces = [
        b"Bearer ",
        KEY[:-1].encode(),
        b"\x00",
        b"\xff\xfe",
        b"'--",
        b"{{7*7}}",
        b"\r\n x",
        b"%s",
    ]
    paths = [
        "/v1/models",
        "/V1/MODELS",
        "/%2e%2e/healthz",
        "/v1/models/%00",
        "/llmrr/ps;x",
        "/?/healthz",
    ]
    async with served() as port:
        for _ in range(300):
            value = b"".join(rng.choice(pieces) for _ in range(rng.randint(1, 5)))
            name = rng.choice([b"authorization", b"x-api-key", b"api-key", b"x-forwarded-host"])
            raw = request(
                rng.choice(paths), b"", method="GET", headers=name + b": " + value + b"\r\n"
            )
            answer = await talk(port, raw)
            assert answer[9:12] in (b"400", b"401"), (raw, answer)


# ---------------------------------------------------------------- room, silence, leaving


async def test_a_full_house_says_when_to_come_back() -> None:
    gate = Gate()
    async with served(FakeTarget("m", [gate, *deltas_of("a")]), max_requests=1) as port:
        first = asyncio.create_task(talk(port, request()))
        await gate.reached.wait()
        status, headers, body = parsed(await talk(port, request()))
        assert (status, headers["retry-after"]) == (503, "1")
        assert body["error"]["type"] == "overloaded_error"
        assert parsed(await talk(port, request("/v1/models", b"", method="GET")))[0] == 200
        gate.open()
        assert parsed(await first)[0] == 200
        assert parsed(await talk(port, request()))[0] == 200


async def test_a_half_closed_connection_counts_as_left() -> None:
    """A FIN is all that a client which went away sends; the two cannot be told apart."""
    gate = Gate()
    target = FakeTarget("m", [gate])
    async with served(target) as port:
        answer = asyncio.create_task(talk(port, request(), half_close=True))
        assert await answer == b""
    assert target.running == 0


async def test_silence_on_a_stream_is_filled_with_comments() -> None:
    gate = Gate()
    async with served(
        FakeTarget("m", [Delta(text="x"), gate, Delta(finish="stop")]), keep_alive_comment=0.02
    ) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(body=STREAM))
        await reader.readuntil(b": ping\n\n")
        await reader.readuntil(b": ping\n\n")
        gate.open()
        rest = await reader.read()
        writer.close()
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_a_client_that_does_not_read_is_dropped() -> None:
    left = asyncio.Event()

    def endless(*_: object) -> Iterator[Delta]:
        try:
            while True:
                yield Delta(text="x" * 100_000)
        finally:
            left.set()

    target = FakeTarget("m", endless)
    async with served(target, protocol=Quick) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(request(body=STREAM))
        await reader.readuntil(b"\r\n\r\n")  # and no more: the reader's small buffer is full
        async with asyncio.timeout(10):
            await left.wait()
        assert target.running == 0
        writer.transport.abort()


async def test_an_error_after_the_head_ends_the_stream_without_done() -> None:
    async with served(FakeTarget("m", [Delta(text="x"), StreamBroken("gone")])) as port:
        answer = await talk(port, request(body=STREAM))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'data: {"error":{"message":"gone"' in answer
    assert b"[DONE]" not in answer
    assert answer.endswith(b"0\r\n\r\n"), "the body itself ends as HTTP wants"


class Falling(FakeTarget):
    """Fails while it is being left, after a complete answer."""

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        async with super().open(request, call) as deltas:
            yield deltas
        raise StreamBroken("while leaving")


async def test_a_failure_while_leaving_does_not_spoil_what_was_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(Falling("m", deltas_of("a"))) as port:
        answer = await talk(port, request(body=STREAM))
        assert answer.count(b"HTTP/1.1") == 1
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert parsed(await talk(port, request()))[0] == 502, "a whole body has not left yet"
    assert "after its answer was complete" in caplog.text


async def test_the_page_is_served_with_its_headers_and_the_document_with_the_key() -> None:
    async with served() as port:
        page = await talk(port, request("/docs", b"", method="GET", headers=b""))
        head, _, body = page.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"content-type: text/html; charset=utf-8" in head
        assert b"content-security-policy: default-src 'none'; connect-src 'self'" in head
        assert body.startswith(b"<!doctype html>")
        assert body.endswith(b"</html>\n")
        bare = await talk(port, request("/docs", b"", method="HEAD", headers=b""))
        assert bare.partition(b"\r\n\r\n")[2] == b""
        status, headers, _ = parsed(await talk(port, request("/docs", b"", headers=b"")))
        assert (status, headers["allow"]) == (405, "get")
        for _ in range(2):  # the second one was made before
            answer = await talk(port, request("/openapi.json", b"", method="GET"))
            status, _, document = parsed(answer)
            assert status == 200
            assert "/v1/chat/completions" in document["paths"]
