"""What holds around every embedding: the deadline, and one record.

Knows: `Embedder`s. The same promises as `Deadline` and `Record` give for answers; an embedding is
one value, so both fit in one place.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from llm_runner_router.errors import DeadlineExceeded, RunnerError
from llm_runner_router.types import Call, Embedder, Embeddings, EmbedRequest

from .record import CLIENT_GONE, RequestRecord, Sink


class GuardedEmbedder:
    """An embedder that gives up when time is over and writes every request down.

    Args:
        embedder: what embeds.
        sink: where records go.
        seconds: the most a request may take, counted from `call.started`; a client's earlier
            deadline counts.
        clock: monotonic seconds; the clock of `call.started`.
        wall: Unix seconds.
    """

    def __init__(
        self,
        embedder: Embedder,
        sink: Sink,
        seconds: float,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.embedder = embedder
        self.name = embedder.name
        self._sink = sink
        self._seconds = seconds
        self._clock = clock
        self._wall = wall

    async def embed(self, request: EmbedRequest, call: Call) -> Embeddings:
        """See `Embedder.embed`.

        Raises:
            DeadlineExceeded
        """
        try:
            result = await self._in_time(request, call)
        except BaseException as exc:
            self._write(request, call, exc=exc)
            raise
        self._write(request, call, result=result)
        return result

    async def _in_time(self, request: EmbedRequest, call: Call) -> Embeddings:
        until = call.started + self._seconds
        if call.deadline is not None:
            until = min(until, call.deadline)
        late = DeadlineExceeded(f"no embedding within {until - call.started:g} s", target=self.name)
        left = until - self._clock()
        if left <= 0:
            raise late
        alarm = asyncio.timeout(left)
        try:
            async with alarm:
                return await self.embedder.embed(request, call)
        except TimeoutError as exc:
            if alarm.expired():
                raise late from exc
            raise

    def _write(
        self,
        request: EmbedRequest,
        call: Call,
        *,
        result: Embeddings | None = None,
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
                asked=request.model,
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
