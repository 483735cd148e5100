"""The load generator counts exactly, checks every answer and says what went wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from bench import load, proc, upstream, wire
from bench.load import Load

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def mock() -> AsyncIterator[tuple[int, upstream.Stats]]:
    server, port, stats = await upstream.listen()
    try:
        yield port, stats
    finally:
        server.close()


def plain(port: int, **kwargs: object) -> Load:
    body = wire.request_body("gpt", size=1000).decode()
    return Load(port, body, text=wire.ANSWER, **kwargs)  # type: ignore[arg-type]  # named like the fields


@pytest.mark.parametrize("connections", [1, 7])
async def test_a_closed_loop_sends_what_was_asked_and_no_more(connections: int) -> None:
    async with mock() as (port, stats):
        result = await load.run(plain(port, connections=connections, requests=50, warmup=10))
    assert (result.sent, result.ok, result.errors) == (50, 50, {})
    assert stats.requests == 60
    assert result.latency.n == 50
    assert result.bytes == 50 * len(wire.answer_body("gpt"))
    assert 0 < result.latency.p50 <= result.latency.p99 <= result.latency.max <= result.seconds


async def test_an_open_loop_sends_what_was_asked() -> None:
    async with mock() as (port, stats):
        result = await load.run(plain(port, connections=2, requests=40, rate=2000.0))
    assert (result.sent, result.ok, result.errors) == (40, 40, {})
    assert stats.requests == 40
    assert result.seconds >= 39 / 2000  # it does not run ahead of its schedule


async def test_an_open_loop_counts_the_time_a_request_waits() -> None:
    """With one connection and answers that take 20 ms, the fifth request waits for four others."""
    script = wire.Script(1, 0.02)
    body = wire.request_body(script.model, stream=True).decode()
    async with mock() as (port, _):
        wanted = Load(
            port, body, connections=1, requests=5, rate=1e6, stream=True, text=script.text
        )
        result = await load.run(wanted)
    assert result.ok == 5
    assert result.latency.max > 4 * 0.02


async def test_streams_are_counted_event_by_event() -> None:
    script = wire.Script(20, 0.001)
    body = wire.request_body(script.model, stream=True).decode()
    async with mock() as (port, _):
        wanted = Load(port, body, connections=4, requests=8, stream=True, text=script.text)
        result = await load.run(wanted)
    assert (result.sent, result.ok, result.errors) == (8, 8, {})
    events = 20 + 4  # the role, the finish reason, the usage, the end
    assert result.events == 8 * events
    assert result.gaps.n == 8 * (events - 1)
    assert (result.prompt_tokens, result.completion_tokens) == (8 * 25, 8 * 20)


async def test_numbered_requests_differ() -> None:
    body = wire.request_body("gpt").decode().replace("Say it", "Say ###### it")
    wanted = Load(1, body)
    first, second = wanted.request(1), wanted.request(2)
    assert len(first) == len(second)
    assert b"Say 000001 it" in first
    assert b"Say 000002 it" in second


# ---------------------------------------------------------------- servers that fail


@asynccontextmanager
async def server(answer: Callable[[int], bytes | None]) -> AsyncIterator[int]:
    """Answers the n-th request with `answer(n)`; None closes the connection instead."""
    seen = 0
    handling: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        handling.add(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                await reader.readexactly(length)
                seen += 1
                data = answer(seen)
                if data is None:
                    return
                writer.write(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]
    await asyncio.wait([task for task in handling if task is not None])


def _ok(body: bytes = b'{"a": "fine"}', extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (extra, len(body), body)


async def test_a_status_is_an_error_with_its_text() -> None:
    bad = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nfull"
    async with server(lambda n: bad if n == 2 else _ok()) as port:
        result = await load.run(Load(port, "{}", requests=4))
    assert (result.sent, result.ok) == (4, 3)
    assert result.errors == {"status 503: full": 1}


async def test_a_new_connection_that_ends_early_is_an_error_and_the_load_goes_on() -> None:
    async with server(lambda n: None if n == 1 else _ok()) as port:
        result = await load.run(Load(port, "{}", requests=4))
    assert (result.sent, result.ok) == (4, 3)
    assert result.errors == {"connection closed early": 1}


async def test_an_answer_that_is_cut_off_is_an_error() -> None:
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nonly this"

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(cut)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        result = await load.run(Load(port, "{}", requests=2))
    assert (result.sent, result.ok) == (2, 0)
    assert result.errors == {"connection closed early": 2}


async def test_a_connection_that_ends_between_requests_is_no_error() -> None:
    async with server(lambda n: _ok(extra=b"connection: close\r\n")) as port:
        result = await load.run(Load(port, "{}", requests=4))
    assert (result.sent, result.ok, result.errors) == (4, 4, {})


async def test_a_connection_that_was_closed_without_notice_is_no_error() -> None:
    """As llama.cpp's server does: after some answers the connection ends, unannounced."""
    served = 0

    def answer(n: int) -> bytes | None:
        nonlocal served
        served += n % 2
        return _ok() if n % 2 else None

    async with server(answer) as port:
        result = await load.run(Load(port, "{}", requests=4))
    assert (result.sent, result.ok, result.errors) == (4, 4, {})
    assert served == 4


async def test_a_wrong_answer_is_an_error() -> None:
    async with server(lambda n: _ok(b'{"a": "wrong"}') if n == 3 else _ok()) as port:
        result = await load.run(Load(port, "{}", requests=4, text="fine"))
    assert (result.sent, result.ok) == (4, 3)
    assert result.errors == {"body with wrong text": 1}


async def test_what_is_not_answered_in_time_is_an_error() -> None:
    async with server(lambda n: b"") as port:
        result = await load.run(Load(port, "{}", requests=3, timeout=0.2))
    assert (result.sent, result.ok) == (1, 0)
    assert result.errors == {"no answer in time": 3}


async def test_nobody_listening_is_an_error() -> None:
    result = await load.run(Load(proc.free_port(), "{}", requests=3))
    assert result.ok == 0
    assert sum(result.errors.values()) == 3
    assert all(what.startswith("cannot connect") for what in result.errors)


@pytest.mark.parametrize(
    ("values", "p50", "p90", "p99"),
    [
        ([5.0], 5.0, 5.0, 5.0),
        ([float(n) for n in range(1, 101)], 50.0, 90.0, 99.0),
        ([float(n) for n in range(1000, 0, -1)], 500.0, 900.0, 990.0),
        ([1.0, 2.0], 1.0, 2.0, 2.0),
    ],
)
def test_percentiles_are_nearest_ranks(
    values: list[float], p50: float, p90: float, p99: float
) -> None:
    found = load.spread(values)
    assert (found.p50, found.p90, found.p99, found.max) == (p50, p90, p99, max(values))
    assert found.n == len(values)


def test_nothing_measured_is_zero() -> None:
    assert load.spread([]) == load.Spread()
