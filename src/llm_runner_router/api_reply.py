"""What the library gives back: a whole `Reply`, or a `Stream` of tokens.

Knows: answers, and when to stop the work behind a stream. Does not know: how a request is made
(`api_request.py`) or routed (`app.py`).
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from msgspec import Struct

from .app import App
from .deltas import Answer, Collector, collect
from .types import Decision, Delta, Request, ToolCall, Trace, Usage


class Reply(Struct, frozen=True):
    """A whole answer and how it came about. `str(reply)` is the text of the first choice."""

    text: str
    model: str
    """Who answered, as configured: for example `zoo:tiny-math`."""
    finish: str | None
    tool_calls: tuple[ToolCall, ...]
    usage: Usage | None
    cost: float | None
    """US dollars; 0 for local models, None when the price or the usage is not known."""
    decisions: tuple[Decision, ...]
    """What each strategy chose and why, outermost first."""
    answer: Answer

    def __str__(self) -> str:
        return self.text

    @property
    def reason(self) -> str:
        """The last decision's reason in words; empty when nothing had to be decided."""
        return self.decisions[-1].reason if self.decisions else ""


class Stream:
    """Tokens as they come: `async for token in stream`, then `stream.reply`.

    The work starts on entering or on the first token, and stops on leaving or at the end. Without
    `async with`, a loop left early is closed by `await stream.aclose()`.
    """

    def __init__(self, app: App, request: Request, closing: AsyncExitStack | None = None) -> None:
        self._app = app
        self._request = request
        self._stack = AsyncExitStack()
        self._closing = closing
        self._deltas: AsyncIterator[Delta] | None = None
        self._collector = Collector()
        self._trace: Trace | None = None
        self._done = False
        app.opened.add(self)

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._close(*sys.exc_info())
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close(kind, error, trace)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while True:
            delta = await self.next_delta()
            if delta.text and delta.index == 0:
                return delta.text

    async def next_delta(self) -> Delta:
        """The next delta itself, of any choice and of any kind.

        Raises:
            StopAsyncIteration: the answer is complete; the work behind it has been closed.
        """
        if self._done:
            raise StopAsyncIteration
        try:
            if self._deltas is None:
                await self._open()
            assert self._deltas is not None, "open gives the deltas"
            delta = await anext(self._deltas)
        except StopAsyncIteration:
            await self._close(None, None, None)
            raise
        except BaseException:
            await self._close(*sys.exc_info())
            raise
        self._collector.add(delta)
        return delta

    @property
    def deltas(self) -> AsyncIterator[Delta]:
        """The deltas themselves, for whoever needs more than the text of the first choice."""
        return _Deltas(self)

    @property
    def reply(self) -> Reply:
        """What has arrived so far, added up."""
        return reply_of(self._collector.answer(), self._trace or Trace())

    async def aclose(self) -> None:
        """Stop the work; safe to call at any time and more than once."""
        await self._close(None, None, None)

    async def _open(self) -> None:
        if self._done or self._deltas is not None:
            return
        await self._app.start()
        call = self._app.start_call(session=self._request.user)
        self._trace = call.trace
        target = self._app.target(self._request.model)
        self._deltas = await self._stack.enter_async_context(target.open(self._request, call))

    async def _close(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._done:
            return
        self._done = True
        try:
            await self._stack.__aexit__(kind, error, trace)
        finally:
            if self._closing is not None:
                await self._closing.aclose()


class _Deltas:
    """The same stream, read delta by delta."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        return await self._stream.next_delta()


async def ask(app: App, request: Request) -> Reply:
    """Ask and wait for the whole answer."""
    call = app.start_call(session=request.user)
    async with app.target(request.model).open(request, call) as deltas:
        answer = await collect(deltas)
    return reply_of(answer, call.trace)


def reply_of(answer: Answer, trace: Trace) -> Reply:
    """What a user wants to know of an answer."""
    first = answer.choices[0] if answer.choices else None
    origin = answer.origin
    return Reply(
        text=answer.text,
        model=origin.target if origin else "",
        finish=first.finish if first else None,
        tool_calls=first.tool_calls if first else (),
        usage=answer.usage,
        cost=origin.cost(answer.usage) if origin else None,
        decisions=tuple(trace.decisions),
        answer=answer,
    )
