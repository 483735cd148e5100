"""How a leaf target does: one attempt in the notebook, and live figures for the strategies.

Knows: when an answer began, gave its first delta and ended, and how. Does not know: what anyone
concludes from it (`strategies/stats.py` keeps the figures).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

from llm_runner_router.errors import RunnerError
from llm_runner_router.types import Attempt, Call, Delta, Request, Target


class Stats(Protocol):
    """What `Measure` tells; `strategies.stats.LiveStats` listens."""

    def begin(self, name: str) -> None:
        """A request to `name` starts."""
        ...

    def first(self, name: str, seconds: float) -> None:
        """Its first delta came after `seconds`."""
        ...

    def end(self, name: str, outcome: str, tokens: int, seconds: float) -> None:
        """It is over: `ok`, `cancelled`, or the class name of the error.

        `tokens` were made in `seconds`; 0 seconds when that says nothing about speed.
        """
        ...


class Measure:
    """A leaf target whose every attempt is written down.

    Args:
        target: the leaf.
        stats: who keeps the live figures.
        clock: monotonic seconds; the clock of `call.started`.
    """

    def __init__(self, target: Target, stats: Stats, clock: Callable[[], float]) -> None:
        self.target = target
        self.name = target.name
        self._stats = stats
        self._clock = clock

    def open(
        self, request: Request, call: Call
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """See `Target.open`."""
        return _Measured(self.target, request, call, self._stats, self._clock)


class _Measured:
    """One attempt. It ends once: with the deltas, with an error, or when the reader leaves."""

    def __init__(
        self,
        target: Target,
        request: Request,
        call: Call,
        stats: Stats,
        clock: Callable[[], float],
    ) -> None:
        self._inner = target.open(request, call)
        self._name = target.name
        self._call = call
        self._stats = stats
        self._clock = clock
        self._began = 0.0
        self._first: float | None = None
        self._pieces = 0
        self._told: int | None = None
        self._whole = False
        self._finished = False
        self._over = False
        self._deltas: AsyncIterator[Delta] | None = None

    async def __aenter__(self) -> AsyncIterator[Delta]:
        self._began = self._clock()
        self._stats.begin(self._name)
        try:
            self._deltas = await self._inner.__aenter__()
        except BaseException as exc:
            self._end(exc)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        try:
            return await self._inner.__aexit__(kind, error, trace)
        finally:
            self._end(None)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        assert self._deltas is not None, "the deltas are read inside `async with`"
        try:
            delta = await self._deltas.__anext__()
        except StopAsyncIteration:
            self._finished = True
            self._end(None)
            raise
        except BaseException as exc:
            self._end(exc)
            raise
        if self._first is None:
            self._note_first(delta)
        if delta.text or delta.tool_calls or delta.reasoning:
            self._pieces += 1
        if delta.usage is not None:
            self._told = delta.usage.completion_tokens
        if delta.finish is not None:
            self._finished = True
        return delta

    def _note_first(self, delta: Delta) -> None:
        now = self._clock()
        self._first = now
        # A whole body says nothing about the time to the first token.
        self._whole = delta.wire is not None and delta.wire.form == "body"
        if not self._whole:
            self._stats.first(self._name, now - self._began)

    def _end(self, exc: BaseException | None) -> None:
        if self._over:
            return
        self._over = True
        now = self._clock()
        if isinstance(exc, RunnerError):
            outcome, message = type(exc).__name__, exc.message
        elif isinstance(exc, Exception):
            outcome, message = type(exc).__name__, str(exc)
        else:
            outcome, message = "ok" if self._finished and exc is None else "cancelled", ""
        tokens, seconds = self._speed(now)
        self._stats.end(self._name, outcome, tokens, seconds)
        started = self._call.started
        self._call.trace.attempts.append(
            Attempt(self._name, self._began - started, now - started, outcome, message)
        )

    def _speed(self, now: float) -> tuple[int, float]:
        tokens = self._pieces if self._told is None else self._told
        if self._first is None or tokens < 1:
            return 0, 0.0
        if self._whole:
            return tokens, now - self._began
        # The first token's time is prefill: of n tokens n - 1 were decoded since, so the time of
        # all n at that pace is what the quotient wants.
        return tokens, (now - self._first) * tokens / (tokens - 1) if tokens > 1 else 0.0
