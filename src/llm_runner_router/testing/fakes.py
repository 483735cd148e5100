"""Fakes for the contracts.

Public: whoever writes a target, a strategy or a policy tests it with these. Knows: types, errors,
deltas. Does not know: any real target, any transport. Nothing here sleeps or looks at the time;
where a test must hold something, it holds a `Gate`.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import msgspec

from llm_runner_router.types import (
    Call,
    Delta,
    Embeddings,
    EmbedRequest,
    Finish,
    Message,
    Origin,
    Price,
    Ranked,
    Ranking,
    Request,
    RerankRequest,
    Usage,
)


class FakeClock:
    """Monotonic seconds that move only when told: `clock()` reads, `advance` moves."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        """The time now."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass and wake whoever sleeps no longer."""
        self.now += seconds
        while self._waiting and self._waiting[0][0] <= self.now:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by `seconds`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self.now + seconds, next(self._order), future))
        await future


class Gate:
    """A point in a script where the fake waits: `await gate.reached.wait()`, then `gate.open()`."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._opened = asyncio.Event()

    def open(self) -> None:
        """Let everybody through, now and later."""
        self._opened.set()

    async def wait(self) -> None:
        """Say that the gate is reached, and wait for it to open."""
        self.reached.set()
        await self._opened.wait()


Step = Delta | BaseException | Gate | asyncio.Event
"""One line of a script: give a delta, raise, or wait."""
Script = Iterable[Step] | Callable[[Request, Call], Iterable[Step]]


def deltas_of(
    text: str,
    *,
    finish: Finish | None = "stop",
    usage: Usage | None = None,
    index: int = 0,
) -> tuple[Delta, ...]:
    """The deltas of a whole answer: one per word, then the finish with the usage.

    Without `usage`, every word counts as a token and the prompt as one. With `finish=None` the
    last delta is left out.
    """
    words = re.findall(r"\S+\s*|\s+", text)
    deltas = [Delta(index=index, text=word) for word in words]
    if deltas:
        deltas[0] = msgspec.structs.replace(deltas[0], role="assistant")
    if finish is not None:
        counted = usage or Usage(prompt_tokens=1, completion_tokens=len(words))
        deltas.append(Delta(index=index, finish=finish, usage=counted))
    return tuple(deltas)


class FakeTarget:
    """A target that follows a script and keeps count.

    Args:
        name: the target's name, also the default answer.
        script: steps to take while iterated, or a function of (request, call) that gives them.
        enter: steps to take while `open()` is entered; gates and errors only.
        price: put on the `Origin` of the first delta.
        local: likewise.

    Attributes:
        opened: how often `open()` was entered, `closed` how often that ended, `running` the
            difference; `most_running` its highest value.
        cancelled: how often a wait in the script was cancelled.
        requests, calls: what it was given, in order.
    """

    def __init__(
        self,
        name: str,
        script: Script | None = None,
        *,
        enter: Sequence[Step] = (),
        price: Price | None = None,
        local: bool = False,
    ) -> None:
        self.name = name
        self.origin = Origin(target=name, model=name, local=local, price=price)
        self.opened = 0
        self.closed = 0
        self.cancelled = 0
        self.most_running = 0
        self.requests: list[Request] = []
        self.calls: list[Call] = []
        self._script: Script = deltas_of(name) if script is None else script
        if not callable(self._script):
            self._script = tuple(self._script)
        self._enter = tuple(enter)

    @property
    def running(self) -> int:
        """Answers that are open now."""
        return self.opened - self.closed

    def open(
        self, request: Request, call: Call
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """See `Target.open`."""
        steps = self._script(request, call) if callable(self._script) else self._script
        return _Scripted(self, request, call, self._enter, steps)

    async def _wait(self, gate: Gate | asyncio.Event) -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class _Scripted:
    """One answer of a `FakeTarget`; it complains when it is used in a way the contract forbids."""

    def __init__(
        self,
        target: FakeTarget,
        request: Request,
        call: Call,
        enter: Iterable[Step],
        steps: Iterable[Step],
    ) -> None:
        self._target = target
        self._asked = (request, call)
        self._enter = enter
        self._steps = iter(steps)
        self._state = "new"
        self._reading = False
        self._first = True

    async def __aenter__(self) -> AsyncIterator[Delta]:
        target = self._target
        assert self._state == "new", f"an answer of {target.name!r} was entered twice"
        self._state = "open"
        target.opened += 1
        target.most_running = max(target.most_running, target.running)
        target.requests.append(self._asked[0])
        target.calls.append(self._asked[1])
        try:
            for step in self._enter:
                if isinstance(step, BaseException):
                    raise step
                assert not isinstance(step, Delta), "a target cannot give deltas while entered"
                await target._wait(step)
        except BaseException:
            self._close()  # a failed __aenter__ is followed by no __aexit__
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        assert self._state == "open", f"an answer of {self._target.name!r} was closed twice"
        self._state = "closed"
        self._target.closed += 1

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        name = self._target.name
        assert self._state == "open", f"an answer of {name!r} was read while {self._state}"
        assert not self._reading, f"an answer of {name!r} was read by two at once"
        self._reading = True
        try:
            for step in self._steps:
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, Delta):
                    return self._signed(step)
                await self._target._wait(step)
        finally:
            self._reading = False
        raise StopAsyncIteration

    def _signed(self, delta: Delta) -> Delta:
        if not self._first or delta.origin is not None:
            return delta
        self._first = False
        return msgspec.structs.replace(delta, origin=self._target.origin)


class FakeEmbedder:
    """An embedder whose vectors follow from the text alone: equal texts, equal vectors.

    Args:
        name: the embedder's name.
        dimensions: length of a vector; a request may ask for fewer, up to 32.
        error: raised instead of an answer.
    """

    def __init__(
        self, name: str, dimensions: int = 4, *, error: BaseException | None = None
    ) -> None:
        self.name = name
        self.dimensions = dimensions
        self.error = error
        self.requests: list[EmbedRequest] = []

    async def embed(self, request: EmbedRequest, call: Call) -> Embeddings:
        """See `Embedder.embed`."""
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        size = request.dimensions or self.dimensions
        vectors = tuple(_vector(repr(text).encode(), size) for text in request.inputs)
        tokens = sum(
            len(text.split()) if isinstance(text, str) else len(text) for text in request.inputs
        )
        return Embeddings(vectors, Usage(prompt_tokens=tokens), Origin(self.name, self.name))


def _vector(data: bytes, size: int) -> tuple[float, ...]:
    return tuple(byte / 255 for byte in hashlib.sha256(data).digest()[:size])


class FakeReranker:
    """A reranker that counts the words of the query in each document.

    Args:
        name: the reranker's name.
        error: raised instead of an answer.
    """

    def __init__(self, name: str, *, error: BaseException | None = None) -> None:
        self.name = name
        self.error = error
        self.requests: list[RerankRequest] = []

    async def rerank(self, request: RerankRequest, call: Call) -> Ranking:
        """See `Reranker.rerank`."""
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        words = request.query.split()
        scores = [float(sum(d.split().count(w) for w in words)) for d in request.documents]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[: request.top_n]
        tokens = sum(len(words) + len(d.split()) for d in request.documents)
        results = tuple(Ranked(i, scores[i]) for i in order)
        return Ranking(results, Usage(prompt_tokens=tokens), Origin(self.name, self.name))


def a_request(text: str = "hello", *, model: str = "m") -> Request:
    """A small chat request."""
    return Request(model=model, messages=(Message("user", text),))


def a_call(id: str = "call-1") -> Call:
    """A call that started at 0 and has no deadline."""
    return Call(id=id, started=0.0)
