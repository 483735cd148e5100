"""What holds around every embedding: the deadline, and one record.

Knows: `Embedder`s. Does not know: how either is kept (`guard.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from llm_runner_router.types import Call, Embedder, Embeddings, EmbedRequest

from .guard import Guard
from .record import Sink


class GuardedEmbedder:
    """An embedder that gives up when time is over and writes every request down.

    Args:
        embedder: what does the work.
        sink, seconds, clock, wall: see `Guard`.
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
        self._guard = Guard(self.name, "embedding", sink, seconds, clock, wall)

    async def embed(self, request: EmbedRequest, call: Call) -> Embeddings:
        """See `Embedder.embed`.

        Raises:
            DeadlineExceeded
        """
        work = self.embedder.embed
        return await self._guard.run(request.model, call, lambda: work(request, call))
