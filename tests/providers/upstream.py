"""A strict upstream for tests: a raw asyncio server that answers as it is told, faults included.

It checks every byte of a request (framing, no pipelining) and notes what it saw; what it answers is
a function of the test. Only `fetch` knows the client under test.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import queue
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from llm_runner_router.providers.http import HttpClient

Answer = Callable[["Seen"], Awaitable[None]]

CHUNKED = b"transfer-encoding: chunked\r\n"
EVENTS = b"content-type: text/event-stream\r\n"


class Seen:
    """One request as the upstream saw it, and the means to answer it."""

    def __init__(
        self,
        head: bytes,
        body: bytes,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        line, *rest = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.method, self.target, self.version = line.split(" ")
        self.headers: dict[str, str] = {}
        for field in rest:
            name, _, value = field.partition(":")
            assert name.lower() not in self.headers, f"the header {name} came twice"
            self.headers[name.lower()] = value.strip()
        self.body = body
        self.connection = number
        self._reader = reader
        self._writer = writer

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int = 200, headers: bytes = CHUNKED + EVENTS) -> None:
        await self.send(b"HTTP/1.1 %d Said\r\n" % status + headers + b"\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        self._writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the client has closed; it may not send anything more."""
        with contextlib.suppress(ConnectionError):
            more = await self._reader.read(1)
            assert more == b"", f"the client sent more: {more!r}"


class Upstream:
    """The server: `async with Upstream(answer) as upstream`; `answer` may be replaced any time."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self._tls = tls
        self.seen: list[Seen] = []
        self.connections = 0
        self.problems: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A connection whose accepting has begun is dropped unclosed by asyncio when the server
        # closes before it got its transport; so stop listening, let those come in, then close.
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
        self._server.close()
        # A connection that was just accepted appears in the loop's next turns, and an aborted
        # transport is closed in them.
        for _ in range(10):
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        if exc is None:
            assert not self.problems, f"the upstream found fault: {self.problems}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._serve(reader, writer, self.connections))
        self._tasks.add(task)
        self._writers.add(writer)
        task.add_done_callback(self._tasks.discard)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        try:
            while True:
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except asyncio.IncompleteReadError as exc:
                    if exc.partial:
                        self.problems.append(AssertionError(f"half a request: {exc.partial!r}"))
                    return
                seen = Seen(head, b"", number, reader, writer)
                seen.body = await reader.readexactly(int(seen.headers["content-length"]))
                self.seen.append(seen)
                await self.answer(seen)
                if writer.is_closing():
                    return
        except ConnectionError:
            return
        except (AssertionError, ValueError, KeyError) as exc:
            self.problems.append(exc)
        finally:
            writer.close()  # kept in the set: what it still wants to send may never be read


@contextlib.contextmanager
def elsewhere(answer: Answer) -> Iterator[str]:
    """The URL of an upstream on a loop of its own, so that only the client's tasks are here."""
    started: queue.SimpleQueue[str] = queue.SimpleQueue()
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(done.set))
        async with Upstream(answer) as upstream:
            started.put(upstream.url)
            await done.wait()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, serve())
        try:
            yield started.get(timeout=10)
        finally:
            stop[0]()
            running.result(timeout=10)


@contextlib.asynccontextmanager
async def closed_port() -> AsyncIterator[int]:
    """A port of this machine where nobody listens."""
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    yield port


# ---------------------------------------------------------------- answers


def reply(
    status: int, body: bytes, headers: bytes = b"content-type: application/json\r\n"
) -> Answer:
    """A whole response with a length."""

    async def answer(seen: Seen) -> None:
        await seen.head(status, b"content-length: %d\r\n" % len(body) + headers)
        await seen.send(body)

    return answer


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def chunk(
    text: str | None = None, *, index: int = 0, finish: str | None = None, **delta: Any
) -> Any:
    """One `chat.completion.chunk`."""
    if text is not None:
        delta["content"] = text
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m-2024",
        "choices": [{"index": index, "delta": delta, "finish_reason": finish}],
    }


USAGE = {
    "id": "c1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m-2024",
    "choices": [],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}
WORDS = ("one", " two", " three")
WHOLE = [
    event(chunk("", role="assistant")),
    *(event(chunk(word)) for word in WORDS),
    event(chunk(finish="stop")),
    event(USAGE),
    event(b"[DONE]"),
]


def stream(events: Sequence[bytes] = WHOLE) -> Answer:
    """A chunked response of events, one HTTP chunk each."""

    async def answer(seen: Seen) -> None:
        await seen.head()
        for data in events:
            await seen.chunk(data)
        await seen.end()

    return answer


def completion(text: str = "one two three") -> bytes:
    """A whole chat completion."""
    return json.dumps(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "m-2024",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
    ).encode()


async def as_asked(seen: Seen) -> None:
    """A stream or a whole answer, as the request wants it."""
    await (stream() if seen.json.get("stream") else reply(200, completion()))(seen)


async def chunk_then_hang(seen: Seen) -> None:
    await seen.head()
    await seen.chunk(b"first")
    await seen.gone()


def noting(answer: Answer) -> tuple[Answer, asyncio.Event, asyncio.Event]:
    """`answer`, with events for when it was begun and when the client was seen to be gone."""
    begun, gone = asyncio.Event(), asyncio.Event()

    async def noted(seen: Seen) -> None:
        begun.set()
        await answer(seen)
        gone.set()

    return noted, begun, gone


async def fetch(client: HttpClient, url: str, body: bytes = b"{}") -> bytes:
    async with client.stream("POST", url, body=body) as response:
        return await response.read(1 << 24)
