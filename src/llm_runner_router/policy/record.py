"""One line for every request, however it ends.

Knows: what of a request is worth keeping, and that prompts and answers are not, unless the
configuration says so. Does not know: where lines go (`sink.py`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

from msgspec import Raw, Struct

from llm_runner_router.deltas import Answer, Collector, decode_speed
from llm_runner_router.errors import RunnerError
from llm_runner_router.types import (
    Attempt,
    Call,
    Delta,
    Finish,
    Mark,
    Message,
    Origin,
    Request,
    Target,
    Usage,
)

CLIENT_GONE = 499
"""Status of a request whose client left, as web servers write it."""


class RequestRecord(Struct, frozen=True, omit_defaults=True):
    """What is kept of one request. Times in seconds since the epoch or milliseconds, as named."""

    id: str
    time: float
    """Unix seconds at the end of the request."""
    asked: str
    """The model name the client used."""
    status: int
    """HTTP status; 499 when the client left."""
    total_ms: float
    caller: str | None = None
    stream: bool = False
    target: str | None = None
    """Who answered."""
    model: str | None = None
    """The model name on the leaf's wire."""
    local: bool = False
    fidelity: dict[str, Mark] = {}
    """What became of the request's parameters at who answered, see `Origin`."""
    strategy: str | None = None
    task: str | None = None
    reason: str | None = None
    attempts: tuple[Attempt, ...] = ()
    usage: Usage | None = None
    estimated: bool = False
    """`usage` was counted by us from the pieces that went out; the target told none."""
    expected_cached: int | None = None
    """Tokens of the prompt that a local runner was known to have; what it had is in `usage`."""
    cost: float | None = None
    """US dollars; None when price or usage is not known."""
    first_token_ms: float | None = None
    tokens_per_second: float | None = None
    finish: Finish | None = None
    error: str | None = None
    """Class name of the error."""
    message: str | None = None
    client_gone: bool = False
    messages: tuple[Message, ...] = ()
    """With `record.content` only."""
    prompt: str | None = None
    answer: Answer | None = None


class Sink(Protocol):
    """Takes records; must not block."""

    def put(self, record: RequestRecord) -> None:
        """Keep `record`, or count it as dropped."""
        ...


class Record:
    """A target whose every request is written down exactly once.

    Args:
        target: what answers.
        sink: where records go.
        clock: monotonic seconds; the clock of `call.started`.
        keep_content: also keep prompts and answers.
        wall: Unix seconds.
    """

    def __init__(
        self,
        target: Target,
        sink: Sink,
        clock: Callable[[], float],
        keep_content: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.target = target
        self.name = target.name
        self.sink = sink
        self.clock = clock
        self.keep_content = keep_content
        self.wall = wall

    def open(
        self, request: Request, call: Call
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """See `Target.open`."""
        return _Recorded(self, request, call)


class _Recorded:
    """The open answer and what has been seen of it. Written on leaving, or if entering fails."""

    __slots__ = (
        "_call",
        "_collector",
        "_deltas",
        "_ended",
        "_error",
        "_finish",
        "_first",
        "_inner",
        "_last",
        "_origin",
        "_pieces",
        "_policy",
        "_request",
        "_timings",
        "_usage",
    )

    def __init__(self, policy: Record, request: Request, call: Call) -> None:
        self._inner = policy.target.open(request, call)
        self._policy = policy
        self._request = request
        self._call = call
        self._collector = Collector() if policy.keep_content else None
        self._deltas: AsyncIterator[Delta] | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._finish: Finish | None = None
        self._first: float | None = None
        self._last = 0.0
        self._origin: Origin | None = None
        self._pieces = 0
        self._timings: Raw | None = None
        self._usage: Usage | None = None

    async def __aenter__(self) -> AsyncIterator[Delta]:
        try:
            self._deltas = await self._inner.__aenter__()
        except BaseException as exc:
            self._error = exc
            self._write()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if self._error is None and not self._ended:
            self._error = error
        try:
            return await self._inner.__aexit__(kind, error, trace)
        finally:
            self._write()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        assert self._deltas is not None, "the deltas are read inside `async with`"
        try:
            delta = await self._deltas.__anext__()
        except StopAsyncIteration:
            self._ended = True
            self._last = self._policy.clock()
            raise
        except BaseException as exc:
            self._error = exc
            raise
        if self._first is None:
            self._first = self._policy.clock()
        if delta.text or delta.tool_calls or delta.reasoning:
            self._pieces += 1
        if delta.usage is not None:
            self._usage = delta.usage
        if delta.origin is not None:
            self._origin = delta.origin
        if delta.timings is not None:
            self._timings = delta.timings
        if delta.finish is not None:
            self._finish = delta.finish
        if self._collector is not None:
            self._collector.add(delta)
        return delta

    def _write(self) -> None:
        policy, call, request = self._policy, self._call, self._request
        now = policy.clock()
        usage, estimated = self._counted()
        origin = self._origin
        status, error, message = self._outcome()
        decision = call.trace.decisions[-1] if call.trace.decisions else None
        policy.sink.put(
            RequestRecord(
                id=call.id,
                time=policy.wall(),
                asked=request.model,
                status=status,
                total_ms=_ms(now - call.started),
                caller=call.caller,
                stream=request.stream,
                target=origin.target if origin else None,
                model=origin.model if origin else None,
                local=origin.local if origin else False,
                fidelity=origin.fidelity if origin else {},
                strategy=decision.strategy if decision else None,
                task=next((d.task for d in call.trace.decisions if d.task), None),
                reason=decision.reason if decision else None,
                attempts=tuple(call.trace.attempts),
                usage=usage,
                estimated=estimated,
                expected_cached=origin.expected if origin else None,
                cost=origin.cost(usage) if origin else None,
                first_token_ms=None if self._first is None else _ms(self._first - call.started),
                tokens_per_second=self._speed(usage, now),
                finish=self._finish,
                error=error,
                message=message,
                client_gone=status == CLIENT_GONE,
                messages=request.messages if policy.keep_content else (),
                prompt=request.prompt if policy.keep_content else None,
                answer=self._collector.answer() if self._collector else None,
            )
        )

    def _counted(self) -> tuple[Usage | None, bool]:
        """The usage told, or for an answer that was cut what went out: a piece is a token."""
        if self._usage is not None or not self._pieces:
            return self._usage, False
        return Usage(completion_tokens=self._pieces), True

    def _outcome(self) -> tuple[int, str | None, str | None]:
        exc = self._error
        if isinstance(exc, RunnerError):
            return exc.status, type(exc).__name__, exc.message
        if isinstance(exc, Exception):
            return 500, type(exc).__name__, str(exc)
        if exc is None and (self._ended or self._finish is not None):
            return 200, None, None
        return CLIENT_GONE, None, None

    def _speed(self, usage: Usage | None, now: float) -> float | None:
        """The engine's own figure; else tokens over the time they took to pass here."""
        own = None if self._timings is None else decode_speed(self._timings)
        if own is not None:
            return round(own, 1)
        if usage is None or self._first is None or not self._request.stream:
            return None
        seconds = (self._last or now) - self._first
        if usage.completion_tokens < 2 or seconds <= 0:
            return None
        return round((usage.completion_tokens - 1) / seconds, 1)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
