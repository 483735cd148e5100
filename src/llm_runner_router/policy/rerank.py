"""What holds around every ranking: the deadline, and one record.

Knows: `Reranker`s. Does not know: how either is kept (`guard.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from llm_runner_router.types import Call, Ranking, Reranker, RerankRequest

from .guard import Guard
from .record import Sink


class GuardedReranker:
    """A reranker that gives up when time is over and writes every request down.

    Args:
        reranker: what does the work.
        sink, seconds, clock, wall: see `Guard`.
    """

    def __init__(
        self,
        reranker: Reranker,
        sink: Sink,
        seconds: float,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.reranker = reranker
        self.name = reranker.name
        self._guard = Guard(self.name, "ranking", sink, seconds, clock, wall)

    async def rerank(self, request: RerankRequest, call: Call) -> Ranking:
        """See `Reranker.rerank`.

        Raises:
            DeadlineExceeded
        """
        work = self.reranker.rerank
        return await self._guard.run(request.model, call, lambda: work(request, call))
