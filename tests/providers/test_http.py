"""The HTTP client against a raw upstream: pooling, leaving early, limits, every way to break."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable

import pytest

from llm_runner_router.errors import (
    BadResponse,
    ConfigError,
    ConnectFailed,
    DeadlineExceeded,
    RunnerError,
    StreamBroken,
    UpstreamTimeout,
)
from llm_runner_router.providers.http import HttpClient, Timeouts

from .upstream import (
    CHUNKED,
    Answer,
    Seen,
    Upstream,
    chunk_then_hang,
    closed_port,
    fetch,
    noting,
    reply,
)


async def hang(seen: Seen) -> None:
    await seen.gone()


async def head_then_hang(seen: Seen) -> None:
    await seen.head()
    await seen.gone()


# ---------------------------------------------------------------- requests and responses


async def test_a_request_arrives_as_it_was_given() -> None:
    async with Upstream(reply(200, b"{}")) as upstream, HttpClient() as client:
        headers = [("X-One", "1"), ("Authorization", "Bearer k")]
        async with client.stream(
            "POST", f"{upstream.url}/v1/x?a=b%20c", headers=headers, body=b'{"q":1}'
        ) as response:
            assert response.status == 200
            assert response.header("Content-TYPE") == "application/json"
            assert response.header("absent") is None
            assert await response.read(100) == b"{}"
        (seen,) = upstream.seen
        assert (seen.method, seen.target, seen.version) == ("POST", "/v1/x?a=b%20c", "HTTP/1.1")
        assert seen.body == b'{"q":1}'
        assert seen.headers == {
            "host": f"127.0.0.1:{upstream.port}",
            "x-one": "1",
            "authorization": "Bearer k",
            "accept-encoding": "identity",
            "content-length": "7",
        }


@pytest.mark.parametrize(
    ("head", "parts", "body"),
    [
        (CHUNKED, [b"3\r\nabc\r\n", b"2;x=y\r\nde\r\n0\r\nTrailer: 1\r\n\r\n"], b"abcde"),
        (b"content-length: 5\r\n", [b"ab", b"cde"], b"abcde"),
        (b"content-length: 0\r\n", [], b""),
    ],
)
async def test_framings(head: bytes, parts: list[bytes], body: bytes) -> None:
    async def answer(seen: Seen) -> None:
        await seen.head(200, head)
        for part in parts:
            await seen.send(part)

    async with Upstream(answer) as upstream, HttpClient() as client:
        assert await fetch(client, upstream.url) == body
        assert await fetch(client, upstream.url) == body
        assert upstream.connections == 1, "the connection was not used again"


async def test_a_body_without_length_ends_with_the_connection() -> None:
    async def answer(seen: Seen) -> None:
        await seen.head(200, b"")
        await seen.send(b"abc")
        seen.close()

    async with Upstream(answer) as upstream, HttpClient() as client:
        assert await fetch(client, upstream.url) == b"abc"
        assert await fetch(client, upstream.url) == b"abc"
        assert upstream.connections == 2


async def test_informational_responses_are_skipped() -> None:
    async def answer(seen: Seen) -> None:
        await seen.send(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
        await reply(201, b"ok")(seen)

    async with Upstream(answer) as upstream, HttpClient() as client:
        async with client.stream("POST", upstream.url) as response:
            assert (response.status, response.header("link")) == (201, None)
            assert await response.read(10) == b"ok"


async def test_redirects_are_not_followed() -> None:
    answer = reply(307, b"", b"location: /elsewhere\r\n")
    async with Upstream(answer) as upstream, HttpClient() as client:
        async with client.stream("POST", upstream.url) as response:
            assert response.status == 307
        assert len(upstream.seen) == 1


async def test_a_large_body_goes_out_whole() -> None:
    async def answer(seen: Seen) -> None:
        await reply(200, b"%d" % len(seen.body))(seen)

    async with Upstream(answer) as upstream, HttpClient() as client:
        assert await fetch(client, upstream.url, b"x" * 9_000_000) == b"9000000"
        assert await fetch(client, upstream.url) == b"2"


# ---------------------------------------------------------------- pooling


async def test_connections_are_kept_and_shared() -> None:
    async with Upstream(reply(200, b"{}")) as upstream, HttpClient() as client:
        for _ in range(5):
            await fetch(client, upstream.url)
        assert upstream.connections == 1
        await asyncio.gather(*(fetch(client, upstream.url) for _ in range(8)))
        at_once = upstream.connections
        assert 1 < at_once <= 8
        await asyncio.gather(*(fetch(client, upstream.url) for _ in range(8)))
        assert upstream.connections == at_once, "idle connections were not used"


@pytest.mark.parametrize("how", ["close", "reset", "unasked"])
async def test_a_stale_connection_is_replaced_before_anything_is_sent(how: str) -> None:
    done = asyncio.Event()

    async def answer(seen: Seen) -> None:
        await reply(200, b"{}")(seen)
        if how == "close":
            seen.close()
        elif how == "reset":
            seen.reset()
        else:
            await seen.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        done.set()

    async with Upstream(answer) as upstream, HttpClient() as client:
        for expected in (1, 2, 3):
            done.clear()
            assert await fetch(client, upstream.url) == b"{}"
            await done.wait()
            assert upstream.connections == expected
        assert len(upstream.seen) == 3, "a request was sent twice"


async def test_a_used_connection_that_dies_unanswered_is_not_silently_asked_again() -> None:
    async def answer(seen: Seen) -> None:
        if len(upstream.seen) == 1:
            await reply(200, b"{}")(seen)
        else:
            seen.reset()

    async with Upstream(answer) as upstream, HttpClient() as client:
        await fetch(client, upstream.url)
        with pytest.raises(ConnectFailed, match="unanswered") as caught:
            await fetch(client, upstream.url)
        assert caught.value.retryable, "the router decides whether it is asked again"
        assert len(upstream.seen) == 2


async def test_connection_close_is_honoured() -> None:
    answer = reply(200, b"{}", b"connection: close\r\n")
    async with Upstream(answer) as upstream, HttpClient() as client:
        await fetch(client, upstream.url)
        await fetch(client, upstream.url)
        assert upstream.connections == 2


async def test_idle_connections_are_closed_after_a_while() -> None:
    gone = asyncio.Event()

    async def answer(seen: Seen) -> None:
        await reply(200, b"{}")(seen)
        await seen.gone()
        gone.set()

    async with Upstream(answer) as upstream, HttpClient(idle_seconds=0.02) as client:
        await fetch(client, upstream.url)
        await asyncio.wait_for(gone.wait(), 10)


async def test_no_more_than_so_many_connections_stay_idle() -> None:
    async with Upstream(reply(200, b"{}")) as upstream, HttpClient(max_idle=2) as client:
        await asyncio.gather(*(fetch(client, upstream.url) for _ in range(6)))
        before = upstream.connections
        await asyncio.gather(*(fetch(client, upstream.url) for _ in range(6)))
        assert upstream.connections == before + 4


async def test_closing_the_client_closes_idle_and_busy_connections() -> None:
    gone = asyncio.Event()
    begun = asyncio.Event()

    async def answer(seen: Seen) -> None:
        begun.set()
        await seen.gone()
        gone.set()

    async with Upstream(answer) as upstream:
        client = HttpClient()
        task = asyncio.create_task(fetch(client, upstream.url))
        await begun.wait()
        await client.close()
        with pytest.raises(ConnectFailed):
            await task
        await asyncio.wait_for(gone.wait(), 10)
        with pytest.raises(ConnectFailed, match="the client is closed"):
            await fetch(client, upstream.url)


# ---------------------------------------------------------------- leaving early


@pytest.mark.parametrize("answer", [hang, head_then_hang, chunk_then_hang])
async def test_cancelling_closes_the_connection_at_once(answer: Answer) -> None:
    noted, begun, gone = noting(answer)
    async with Upstream(noted) as upstream, HttpClient() as client:
        task = asyncio.create_task(fetch(client, upstream.url))
        await begun.wait()
        await asyncio.sleep(0.01)  # into whichever wait it is
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 1)


@pytest.mark.parametrize("answer", [head_then_hang, chunk_then_hang])
async def test_leaving_the_block_closes_the_connection_at_once(answer: Answer) -> None:
    noted, _, gone = noting(answer)
    async with Upstream(noted) as upstream, HttpClient() as client:
        async with client.stream("POST", upstream.url) as response:
            assert response.status == 200
        await asyncio.wait_for(gone.wait(), 1)


async def test_cancelling_while_connecting() -> None:
    # A listener that accepts nothing and whose queue is full keeps a connect waiting.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            async with HttpClient() as client:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                task = asyncio.create_task(fetch(client, url))
                await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        finally:
            for filler in fillers:
                filler.close()


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (hang, "before its answer began"),
        (head_then_hang, "inside its answer"),
        (chunk_then_hang, "inside its answer"),
    ],
)
async def test_silence_is_limited(answer: Answer, words: str) -> None:
    noted, _, gone = noting(answer)
    # Only the limit under test is short: on a busy machine the others would be met first.
    first = 0.05 if answer is hang else 5.0
    timeouts = Timeouts(connect=5.0, first_byte=first, idle=0.05)
    async with Upstream(noted) as upstream, HttpClient() as client:
        with pytest.raises(UpstreamTimeout, match=words):
            async with client.stream("POST", upstream.url, timeouts=timeouts) as response:
                await response.read(100)
        await asyncio.wait_for(gone.wait(), 1)


async def test_the_limit_on_the_first_byte_covers_the_headers() -> None:
    timeouts = Timeouts(first_byte=0.05, idle=30)
    async with Upstream(head_then_hang) as upstream, HttpClient() as client:
        with pytest.raises(UpstreamTimeout):
            async with client.stream("POST", upstream.url, timeouts=timeouts) as response:
                await response.read(100)


async def test_slow_but_not_silent_is_fine() -> None:
    async def answer(seen: Seen) -> None:
        await seen.head()
        for _ in range(6):
            await seen.chunk(b"x")
            await asyncio.sleep(0.04)
        await seen.end()

    timeouts = Timeouts(first_byte=5, idle=5)
    async with Upstream(answer) as upstream, HttpClient() as client:
        async with client.stream("POST", upstream.url, timeouts=timeouts) as response:
            pieces = [piece async for piece in response.chunks()]
        assert b"".join(pieces) == b"x" * 6
        assert len(pieces) > 1, "pieces were held back"


@pytest.mark.parametrize("answer", [hang, head_then_hang, chunk_then_hang])
async def test_the_deadline_bounds_every_wait(answer: Answer) -> None:
    async with Upstream(answer) as upstream, HttpClient() as client:
        deadline = asyncio.get_running_loop().time() + 0.05
        with pytest.raises(DeadlineExceeded):
            async with client.stream("POST", upstream.url, deadline=deadline) as response:
                await response.read(100)


async def test_a_passed_deadline_sends_nothing() -> None:
    async with Upstream(hang) as upstream, HttpClient() as client:
        with pytest.raises(DeadlineExceeded):
            async with client.stream("POST", upstream.url, deadline=0.0):
                pass
        assert upstream.connections == 0


async def test_a_body_over_the_limit_is_refused() -> None:
    async with Upstream(reply(200, b"x" * 1000)) as upstream, HttpClient() as client:
        async with client.stream("POST", upstream.url) as response:
            with pytest.raises(BadResponse, match="longer than 999 bytes"):
                await response.read(999)


async def test_reading_ahead_is_bounded() -> None:
    sent = 0
    stuck = asyncio.Event()

    async def answer(seen: Seen) -> None:
        nonlocal sent
        await seen.head()
        for _ in range(4000):  # 256 MB
            try:
                await asyncio.wait_for(seen.chunk(b"x" * 65536), 0.5)
            except TimeoutError:
                break
            sent += 65536
        stuck.set()
        await asyncio.sleep(3600)

    async with Upstream(answer) as upstream, HttpClient() as client:
        async with client.stream("POST", upstream.url) as response:
            await asyncio.wait_for(stuck.wait(), 20)
            # Kernel buffers on both sides take a few MB; the client may not add to that.
            assert sent < 64 << 20, f"{sent} bytes were taken from an upstream nobody reads"
            piece = await anext(aiter(response.chunks()))
            assert 0 < len(piece) <= 320 * 1024, f"{len(piece)} bytes were held in the client"


# ---------------------------------------------------------------- breaking


def cut(data: bytes, reset: bool = False) -> Answer:
    async def answer(seen: Seen) -> None:
        await seen.send(data)
        if reset:
            await asyncio.sleep(0.01)  # a reset may overtake data that was not read yet
            seen.reset()
        else:
            seen.close()

    return answer


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (cut(b""), ConnectFailed),
        (cut(b"", reset=True), ConnectFailed),
        (cut(b"HTTP/1.1 20"), StreamBroken),
        (cut(HEAD + b"content-le"), StreamBroken),
        (cut(HEAD + b"content-length: 10\r\n\r\nabc"), StreamBroken),
        (cut(HEAD + b"content-length: 10\r\n\r\nabc", reset=True), StreamBroken),
        (cut(HEAD + CHUNKED + b"\r\n5\r\nab"), StreamBroken),
        (cut(HEAD + CHUNKED + b"\r\n2\r\nab\r\n"), StreamBroken),
        (cut(HEAD + CHUNKED + b"\r\nzz\r\nab\r\n"), BadResponse),
        (cut(HEAD + b"content-length: x\r\n\r\n"), BadResponse),
        (cut(HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab"), BadResponse),
        (cut(HEAD + CHUNKED + b"content-length: 3\r\n\r\nabc"), BadResponse),
        (cut(b"\x16\x03\x01 what?\r\n\r\n"), BadResponse),
        (cut(b"SSH-2.0-OpenSSH\r\n"), BadResponse),
        (cut(b"HTTP/1.1 101 Up\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"), BadResponse),
        (cut(HEAD + b"x: " + b"y" * 100_000), BadResponse),
    ],
)
async def test_every_break_is_an_error_of_ours(answer: Answer, kind: type[RunnerError]) -> None:
    async with Upstream(answer) as upstream, HttpClient() as client:
        with pytest.raises(kind):
            await fetch(client, upstream.url)
        upstream.answer = reply(200, b"fine")
        assert await fetch(client, upstream.url) == b"fine", "the client did not recover"


async def test_what_arrived_before_a_break_is_given_out() -> None:
    async def answer(seen: Seen) -> None:
        await seen.head()
        await seen.chunk(b"abc")
        await asyncio.sleep(0.01)
        seen.reset()

    async with Upstream(answer) as upstream, HttpClient() as client:
        async with client.stream("POST", upstream.url) as response:
            chunks = response.chunks()
            assert await anext(chunks) == b"abc"
            with pytest.raises(StreamBroken):
                await anext(chunks)


async def test_bytes_after_the_end_make_the_connection_useless() -> None:
    async def answer(seen: Seen) -> None:
        await seen.send(HEAD + b"content-length: 2\r\n\r\nokHTTP/1.1 500 Evil\r\n\r\n")

    async with Upstream(answer) as upstream, HttpClient() as client:
        for expected in (1, 2):
            async with client.stream("POST", upstream.url) as response:
                assert (response.status, await response.read(9)) == (200, b"ok")
            assert upstream.connections == expected


async def test_nobody_listens() -> None:
    async with closed_port() as port, HttpClient() as client:
        with pytest.raises(ConnectFailed, match=f"127.0.0.1:{port}") as caught:
            await fetch(client, f"http://127.0.0.1:{port}/v1")
        assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\n", "a\0", "日本"])
async def test_headers_cannot_smuggle(value: str) -> None:
    async with Upstream(reply(200, b"{}")) as upstream, HttpClient() as client:
        with pytest.raises(ConfigError) as caught:
            async with client.stream("POST", upstream.url, headers=[("X-Key", value)]):
                pass
        assert value not in str(caught.value)
        assert upstream.connections == 0


# ---------------------------------------------------------------- the loop that production uses


def on_uvloop(main: Callable[[], object]) -> None:
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())  # type: ignore[arg-type]  # a coroutine function of these tests


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop does not exist there")
@pytest.mark.parametrize(
    "main",
    [
        lambda: test_connections_are_kept_and_shared(),
        lambda: test_a_stale_connection_is_replaced_before_anything_is_sent("close"),
        lambda: test_cancelling_closes_the_connection_at_once(hang),
        lambda: test_cancelling_closes_the_connection_at_once(chunk_then_hang),
        lambda: test_silence_is_limited(hang, "before its answer began"),
        lambda: test_the_deadline_bounds_every_wait(chunk_then_hang),
        lambda: test_reading_ahead_is_bounded(),
        lambda: test_nobody_listens(),
        lambda: test_closing_the_client_closes_idle_and_busy_connections(),
    ],
)
def test_the_same_on_uvloop(main: Callable[[], object]) -> None:
    on_uvloop(main)
