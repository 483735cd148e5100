"""Who may ask a runner now, where requests with different LoRA adapters cannot run together.

Knows: sets, in any hashable form, and the order of arrival. Does not know: requests, slots.

llama.cpp computes a batch for one set of adapters. Slots with another set are passed over while the
first busy slot has work, so that under steady load a request in a later slot never gets its turn
(b11549, two slots: one of 100 tokens waited for all of twenty others that came after it). Here
whoever comes first is let in first; those of one set that follow each other run together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Sets:
    """Lets requests of one set in at a time. Owned by one runner, used in one event loop."""

    def __init__(self) -> None:
        self._set: Hashable = None
        self._inside = 0
        self._queue: deque[tuple[Hashable, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def turn(self, wanted: Hashable) -> AsyncIterator[None]:
        """Wait until requests for `wanted` are let in, and be one until the block is left."""
        if self._queue or (self._inside and self._set != wanted):
            await self._wait(wanted)
        else:
            self._enter(wanted)
        try:
            yield
        finally:
            self._inside -= 1
            self._admit()

    async def _wait(self, wanted: Hashable) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = wanted, mine
        self._queue.append(place)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                if place in self._queue:
                    self._queue.remove(place)
            else:  # let in and cancelled in the same moment
                self._inside -= 1
            self._admit()
            raise

    def _enter(self, wanted: Hashable) -> None:
        self._set = wanted
        self._inside += 1

    def _admit(self) -> None:
        while self._queue and (not self._inside or self._queue[0][0] == self._set):
            wanted, waiting = self._queue.popleft()
            if not waiting.cancelled():
                self._enter(wanted)
                waiting.set_result(None)
