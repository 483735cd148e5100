"""What holds around every request that is answered with one value: the deadline, and one record.

Knows: calls, errors, records. The same promises as `Deadline` and `Record` give for answers that
come in pieces. Does not know: what is asked for (`embed.py`, `rerank.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from llm_runner_router.errors import DeadlineExceeded, RunnerError
from llm_runner_router.types import Call, Origin, Usage

from .record import CLIENT_GONE, RequestRecord, Sink


class Answered(Protocol):
    """What every such value says of itself."""

    @property
    def usage(self) -> Usage:
        """The tokens it took."""
        ...

    @property
    def origin(self) -> Origin | None:
        """Who made it."""
        ...


A = TypeVar("A", bound=Answered)


class Guard:
    """Gives up when time is over and writes every request down.

    Args:
        name: who is asked, for the error.
        what: what is waited for, for the error: `embedding`.
        sink: where records go.
        seconds: the most a request may take, counted from `call.started`; a client's earlier
            deadline counts.
        clock: monotonic seconds; the clock of `call.started`.
        wall: Unix seconds.
    """

    def __init__(
        self,
        name: str,
        what: str,
        sink: Sink,
        seconds: float,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._name = name
        self._what = what
        self._sink = sink
        self._seconds = seconds
        self._clock = clock
        self._wall = wall

    async def run(self, asked: str, call: Call, work: Callable[[], Awaitable[A]]) -> A:
        """The value of `work`, for the model that was asked for as `asked`.

        Raises:
            DeadlineExceeded
        """
        try:
            result = await self._in_time(call, work)
        except BaseException as exc:
            self._write(asked, call, exc=exc)
            raise
        self._write(asked, call, result=result)
        return result

    async def _in_time(self, call: Call, work: Callable[[], Awaitable[A]]) -> A:
        until = call.started + self._seconds
        if call.deadline is not None:
            until = min(until, call.deadline)
        late = DeadlineExceeded(
            f"no {self._what} within {until - call.started:g} s", target=self._name
        )
        left = until - self._clock()
        if left <= 0:
            raise late
        alarm = asyncio.timeout(left)
        try:
            async with alarm:
                return await work()
        except TimeoutError as exc:
            if alarm.expired():
                raise late from exc
            raise

    def _write(
        self,
        asked: str,
        call: Call,
        *,
        result: Answered | None = None,
        exc: BaseException | None = None,
    ) -> None:
        origin = result.origin if result else None
        usage = result.usage if result else None
        status = 200
        if exc is not None:
            status = 500 if isinstance(exc, Exception) else CLIENT_GONE
            status = exc.status if isinstance(exc, RunnerError) else status
        failed = isinstance(exc, Exception)
        self._sink.put(
            RequestRecord(
                id=call.id,
                time=self._wall(),
                asked=asked,
                status=status,
                total_ms=round((self._clock() - call.started) * 1000, 2),
                caller=call.caller,
                target=origin.target if origin else None,
                model=origin.model if origin else None,
                local=origin.local if origin else False,
                usage=usage,
                cost=origin.cost(usage) if origin else None,
                error=type(exc).__name__ if failed else None,
                message=getattr(exc, "message", str(exc)) if failed else None,
                client_gone=status == CLIENT_GONE,
            )
        )
