"""One started, empty runner process, so that loading a model costs no interpreter start.

Knows: `Worker`s. Does not know: models. Measured: starting Python and importing the engine takes
50 ms on idle cores and 150 to 250 ms on busy ones; loading a zoo model takes 30 to 100 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from .threads import CpuPlan, Wait
from .worker import Worker

Starter = Callable[[Wait], Coroutine[None, None, Worker]]


class Spare:
    """Keeps at most one process. `refill` starts it, `take` gives it away, `close` ends it.

    The process has imported the engine, so its way of waiting is fixed; it suits a plan with the
    same way, or one with a single thread for everything, which waits for nobody.
    """

    def __init__(self, start: Starter) -> None:
        self._start = start
        self._worker: Worker | None = None
        self._lock = asyncio.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Its process id, if there is one."""
        return self._worker.pid if self._worker is not None else None

    @property
    def wait(self) -> Wait | None:
        """How its threads will wait, if there is one."""
        return self._worker.wait if self._worker is not None else None

    async def take(self, plan: CpuPlan) -> Worker | None:
        """The spare process, now the caller's; None if there is none that suits `plan`.

        One that is being started is waited for: it is ahead of any other that could be started.
        """
        async with self._lock:
            worker = self._worker
            if worker is None or not worker.is_alive:
                return None
            single = plan.threads == plan.batch_threads == 1
            if worker.wait != plan.wait and not single:
                return None
            self._worker = None
            return worker

    async def refill(self, wait: Wait) -> None:
        """Have a live process that waits this way; one that waits otherwise is replaced."""
        async with self._lock:
            old = self._worker
            if self._closed or (old is not None and old.is_alive and old.wait == wait):
                return
            self._worker = None
            if old is not None:
                await old.stop()
            worker = await self._start(wait)
            if self._closed:
                await worker.stop()
            else:
                self._worker = worker

    async def close(self) -> None:
        """End the process; none is started any more."""
        self._closed = True
        async with self._lock:
            worker, self._worker = self._worker, None
            if worker is not None:
                await worker.stop()
