"""A load generator on bare asyncio protocols: exact counts, exact times, every answer checked.

Knows: HTTP/1.1, closed loops (each connection asks again when it has its answer) and open loops
(requests start at fixed times, whatever the server does), event streams. Does not know what it
measures. As a process (`python -m bench.load`) it reads one `Load` per line from standard input
and writes one `Result` per line.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count, pairwise
from time import perf_counter
from typing import cast

import httptools
import msgspec
from msgspec import Struct

from . import wire


class Load(Struct, frozen=True):
    """What to send, and how hard."""

    port: int
    body: str
    connections: int = 1
    """Connections of a closed loop; the most at once of an open loop."""
    requests: int = 1
    """Requests in all, besides the warm-up."""
    warmup: int = 0
    """Requests sent before the clock starts, not counted anywhere but in `errors`."""
    rate: float | None = None
    """Requests per second of an open loop; None means a closed loop."""
    ramp: float = 0.0
    """Seconds over which the first requests of a closed loop are spread."""
    stream: bool = False
    text: str = ""
    """What an answer must hold (plain) or add up to (stream)."""
    usage: bool = True
    """A stream must carry usage."""
    timeout: float = 20.0
    """Seconds for the whole load; what is not answered by then is an error."""
    host: str = "127.0.0.1"
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = {}

    def request(self, number: int) -> bytes:
        """One whole request; `######` in the body becomes its number, so that no two are equal."""
        body = self.body.replace("######", f"{number:06d}").encode()
        head = [
            f"POST {self.path} HTTP/1.1",
            f"host: {self.host}:{self.port}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join([*head, "", ""]).encode() + body


class Spread(Struct, frozen=True):
    """Seconds, summed up. All 0 if nothing was measured."""

    n: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class Result(Struct, frozen=True):
    """What came of a load."""

    sent: int
    ok: int
    errors: dict[str, int]
    seconds: float
    """From the first counted request to the last answer."""
    latency: Spread = Spread()
    """From sending (open loop: from when it was due) to the last byte."""
    first: Spread = Spread()
    """To the first event (stream) or the first byte of the body (plain)."""
    gaps: Spread = Spread()
    """Between two events of a stream; two in one read have a gap of 0."""
    events: int = 0
    """Events of all streams, with role, finish, usage and `[DONE]`."""
    bytes: int = 0
    prompt_tokens: int = 0
    """Of all streams, as their usage says."""
    completion_tokens: int = 0

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return self.ok / self.seconds if self.seconds else 0.0


def spread(values: list[float]) -> Spread:
    """Percentiles by the nearest rank: the p99 of 100 values is the 99th smallest."""
    if not values:
        return Spread()
    ordered = sorted(values)

    def rank(share: float) -> float:
        return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]

    mean = sum(ordered) / len(ordered)
    return Spread(len(ordered), mean, rank(0.5), rank(0.9), rank(0.99), ordered[-1])


class Answer:
    """One request on its way: when its parts came, and what."""

    __slots__ = ("body", "counted", "events", "first", "last", "pieces", "sent", "status", "tail")

    def __init__(self, sent: float, counted: bool) -> None:
        self.sent = sent
        self.counted = counted
        self.status = 0
        self.first = 0.0
        self.last = 0.0
        self.events: list[float] = []
        self.pieces: list[bytes] = []
        self.tail = b""
        self.body = b""


STALE = "closed before the request"
"""The server closed an idle connection while a request was on its way: ask again on another one."""


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, load: Load, done: Callable[[Connection, Answer, str | None], None]) -> None:
        self._load = load
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._used = False
        self._now = 0.0

    @property
    def alive(self) -> bool:
        """The other side has not closed it."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, data: bytes, due: float | None, counted: bool) -> None:
        """Send a request; `due` is when it should have been sent, if that matters."""
        now = perf_counter()
        self._answer = Answer(now if due is None else due, counted)
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------ asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        unheard = self._answer is not None and not self._answer.status
        self._finish(STALE if unheard and self._used else "connection closed early")

    def data_received(self, data: bytes) -> None:
        self._now = perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._finish(f"not HTTP: {exc}")
            self.close()

    # ------------------------------------------------------------ httptools

    def on_headers_complete(self) -> None:
        if self._answer is not None:
            self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        answer = self._answer
        if answer is None:
            return
        if not answer.first:
            answer.first = self._now
        answer.pieces.append(body)
        if self._load.stream:
            # An event ends with a blank line, which two pieces may share.
            ends = (answer.tail + body).count(b"\n\n")
            answer.events.extend([self._now] * ends)
            answer.tail = b"\n" if body.endswith(b"\n") and not body.endswith(b"\n\n") else b""

    def on_message_complete(self) -> None:
        self._used = True
        keep = self._parser.should_keep_alive()
        if not keep and self._transport is not None:
            self._transport.close()
        self._finish(None)

    def _finish(self, fault: str | None) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.last = perf_counter() if fault else self._now
            self._done(self, answer, fault)


class _Run:
    """One load from its first connection to its last answer."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self._same = load.request(0) if "######" not in load.body else None
        self._numbers = count(1)
        self._loop = asyncio.get_running_loop()
        self._answers: list[Answer] = []
        self._errors: Counter[str] = Counter()
        self._left = load.requests
        self._warm = load.warmup
        self._open = 0
        self._sent = 0
        self._all: set[Connection] = set()
        self._free: list[Connection] = []
        self._due: list[float] = []
        self._ended = asyncio.Event()
        self._over = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._began = 0.0
        self._finished = 0.0

    async def run(self) -> Result:
        """Do it all."""
        try:
            async with asyncio.timeout(self.load.timeout):
                for _ in range(self.load.connections):
                    self._free.append(await self._connect())
                if self.load.rate is None:
                    await self._closed_loop()
                else:
                    await self._open_loop(self.load.rate)
        except TimeoutError:
            self._errors["no answer in time"] += self._open + self._left
        except OSError as exc:
            self._errors[f"cannot connect: {exc.strerror or exc}"] += self._left
        finally:
            self._over = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for connection in self._all:
                connection.close()
        return self._result()

    def _data(self) -> bytes:
        return self._same or self.load.request(next(self._numbers))

    async def _connect(self) -> Connection:
        made = lambda: Connection(self.load, self._done)  # noqa: E731  # a protocol factory
        _, connection = await self._loop.create_connection(made, self.load.host, self.load.port)
        self._all.add(connection)
        return connection

    # ------------------------------------------------------------ loops

    async def _closed_loop(self) -> None:
        connections, self._free = self._free, []
        if self._warm:
            await self._batch(connections, self._warm)
            connections, self._free = await self._revived(), []
        self._began = perf_counter()
        await self._batch(connections, self.load.requests, counted=True)

    async def _batch(self, connections: list[Connection], n: int, counted: bool = False) -> None:
        self._left, self._warm = n, 0 if counted else n
        self._ended.clear()
        step = self.load.ramp / max(1, len(connections)) if counted else 0.0
        for i, connection in enumerate(connections):
            if step:
                self._loop.call_later(i * step, self._next, connection)
            else:
                self._next(connection)
        await self._ended.wait()

    async def _revived(self) -> list[Connection]:
        return [c if c.alive else await self._connect() for c in self._free]

    def _next(self, connection: Connection) -> None:
        if self._over:
            return
        if self._left <= 0:
            self._free.append(connection)
            if not self._open:
                self._ended.set()
            return
        if not connection.alive:
            task = self._loop.create_task(self._again(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        self._left -= 1
        self._open += 1
        counted = not self._warm
        self._sent += counted
        connection.ask(self._data(), None, counted)

    async def _again(self, old: Connection) -> None:
        """A server may close a connection between two requests; that is no error."""
        self._all.discard(old)
        try:
            connection = await self._connect()
        except OSError as exc:
            self._errors[f"cannot connect: {exc.strerror or exc}"] += self._left
            self._left = 0
            self._ended.set()
            return
        self._next(connection)

    async def _open_loop(self, rate: float) -> None:
        self._ended.clear()
        self._began = perf_counter()
        for i in range(self.load.requests):
            due = self._began + i / rate
            wait = due - perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            self._left -= 1
            self._open += 1
            self._sent += 1
            self._give(due)
        if self._open:
            await self._ended.wait()

    def _give(self, due: float) -> None:
        while self._free:
            connection = self._free.pop()
            if connection.alive:
                connection.ask(self._data(), due, True)
                return
        # All are busy: it waits for one, and its clock runs.
        self._due.append(due)

    # ------------------------------------------------------------ answers

    def _done(self, connection: Connection, answer: Answer, fault: str | None) -> None:
        if self._over:
            return
        self._open -= 1
        if fault is STALE and self.load.rate is None:
            self._left += 1
            self._sent -= answer.counted
            self._loop.call_soon(self._next, connection)
            return
        self._finished = answer.last
        if fault is None and answer.status != 200:
            start = b"".join(answer.pieces)[:120].decode(errors="replace")
            fault = f"status {answer.status}: {start}"
        if fault is not None:
            self._errors[fault] += 1
        elif answer.counted:
            self._answers.append(answer)
        if self.load.rate is None:
            # Not from inside the parser: the connection may be closing.
            self._loop.call_soon(self._next, connection)
            return
        if self._due and connection.alive:
            connection.ask(self._data(), self._due.pop(0), True)
        else:
            self._free.append(connection)
        if not self._open and not self._left:
            self._ended.set()

    def _result(self) -> Result:
        load, good = self.load, []
        tokens = [0, 0]
        for answer in self._answers:
            answer.body = b"".join(answer.pieces)
            if load.stream:
                fault = wire.fault_of_stream(answer.body, load.text, usage=load.usage)
                tokens = [a + b for a, b in zip(tokens, wire.tokens(answer.body), strict=True)]
            else:
                fault = wire.fault_of_body(answer.body, load.text)
            if fault is None:
                good.append(answer)
            else:
                self._errors[fault] += 1
        return Result(
            sent=self._sent,
            ok=len(good),
            errors=dict(self._errors),
            seconds=max(0.0, self._finished - self._began),
            latency=spread([a.last - a.sent for a in good]),
            first=spread([(a.events[0] if load.stream else a.first) - a.sent for a in good]),
            gaps=spread([gap for a in good for gap in _gaps(a.events)]),
            events=sum(len(a.events) for a in good),
            bytes=sum(len(a.body) for a in good),
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
        )


def _gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


async def run(load: Load) -> Result:
    """Put a load on a server."""
    return await _Run(load).run()


def main() -> None:
    """Serve loads from standard input until it closes."""
    factory = None
    with suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    decoder = msgspec.json.Decoder(Load)
    for line in sys.stdin.buffer:
        load = decoder.decode(line)
        gc.collect()
        gc.disable()  # a collection in the middle would look like a slow server
        with asyncio.Runner(loop_factory=factory) as runner:
            result = runner.run(run(load))
        gc.enable()
        sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
