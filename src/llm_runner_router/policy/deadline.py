"""How long an answer may take in all.

Knows: a clock and a number of seconds. Does not know: retries, which strategies make within the
same deadline (reliability: one deadline per request, handed to every attempt).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from llm_runner_router.errors import DeadlineExceeded
from llm_runner_router.types import Call, Delta, Request, Target

T = TypeVar("T")


class Deadline:
    """A target that gives up when time is over.

    Sets `call.deadline`, or lowers it: what a client asks for counts if it is less.

    Args:
        target: what answers.
        seconds: the most a request may take, counted from `call.started`.
        clock: monotonic seconds; the clock of `call.started`.
    """

    def __init__(self, target: Target, seconds: float, clock: Callable[[], float]) -> None:
        self.target = target
        self.name = target.name
        self._seconds = seconds
        self._clock = clock

    def open(
        self, request: Request, call: Call
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """See `Target.open`.

        Raises:
            DeadlineExceeded: on entering or while iterating. The reader's own work is never
                interrupted.
        """
        until = call.started + self._seconds
        if call.deadline is None or until < call.deadline:
            call = msgspec.structs.replace(call, deadline=until)
        else:
            until = call.deadline
        return _Limited(self.target, request, call, until, self._clock)


class _Limited:
    """The open answer and its alarm.

    One timer per answer instead of one per delta: it marks time as over and cancels the wait that
    is going on, if there is one. The accounting of `cancel`/`uncancel` is that of
    `asyncio.Timeout`, so that a cancellation from outside is not mistaken for ours.
    """

    def __init__(
        self,
        target: Target,
        request: Request,
        call: Call,
        until: float,
        clock: Callable[[], float],
    ) -> None:
        self._inner = target.open(request, call)
        self._name = target.name
        self._seconds = until - call.started
        self._until = until
        self._clock = clock
        self._over = False
        self._waiting: asyncio.Task[Any] | None = None
        self._struck = False
        self._alarm: asyncio.TimerHandle | None = None
        self._deltas: AsyncIterator[Delta] | None = None

    async def __aenter__(self) -> AsyncIterator[Delta]:
        left = self._until - self._clock()
        if left <= 0:
            raise self._error()
        self._alarm = asyncio.get_running_loop().call_later(left, self._ring)
        try:
            self._deltas = await self._wait(self._inner.__aenter__())
        except BaseException:
            self._alarm.cancel()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if self._alarm is not None:
            self._alarm.cancel()
        return await self._inner.__aexit__(kind, error, trace)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        assert self._deltas is not None, "the deltas are read inside `async with`"
        if self._over or self._clock() >= self._until:
            raise self._error()
        return await self._wait(self._deltas.__anext__())

    async def _wait(self, step: Awaitable[T]) -> T:
        task = asyncio.current_task()
        assert task is not None, "deltas are read in a task"
        before = task.cancelling()
        self._waiting = task
        try:
            result = await step
        except BaseException as exc:
            if self._struck:
                self._struck = False
                others = task.uncancel() > before
                if not (others and isinstance(exc, asyncio.CancelledError)):
                    raise self._error() from exc
            raise
        finally:
            self._waiting = None
        if self._struck:  # the target swallowed our cancellation
            task.uncancel()
            raise self._error()
        return result

    def _ring(self) -> None:
        self._over = True
        if self._waiting is not None:
            self._struck = True
            self._waiting.cancel()

    def _error(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no complete answer within {self._seconds:g} s", target=self._name)
