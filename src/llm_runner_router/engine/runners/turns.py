"""Who computes next, and in which sequence: answers take turns on one thread.

Knows: sessions, asyncio. Does not know: requests, HTTP. One thread computes everything, first come
first served; as each answer asks for one piece of work at a time, they advance in turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from .refusal import Refusal
from .sampling import Logits
from .session import Loaded, Session

T = TypeVar("T")

QUEUE = 8
"""Requests that may wait, per slot; the gateway holds back more by itself."""


class Turns:
    """The one computing thread.

    Args:
        threads: more than one where an engine computes by itself and is only waited for.
    """

    def __init__(self, threads: int = 1) -> None:
        self._executor = ThreadPoolExecutor(threads, "compute")

    async def run(self, work: Callable[[], T]) -> T:
        """Do `work` in its turn. Whoever is cancelled leaves when its own work is over, however
        often: what it works on is the caller's, who closes it then."""
        future = self._executor.submit(work)
        waiting = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            future.cancel()
            while not waiting.done():
                try:
                    await asyncio.wait([waiting])
                except asyncio.CancelledError:
                    pass
            raise


class _Kept:
    """A session and the tokens in it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tokens: list[int] = []
        self.sound = True
        """What is in it is known; not so after a computation that failed, or a cut whose end
        nobody saw."""


class Held:
    """A session while an answer has it.

    Attributes:
        cached: tokens at the prompt's beginning that are in it already.
    """

    def __init__(self, kept: _Kept, cached: int) -> None:
        self._kept = kept
        self.cached = cached

    def feed(self, tokens: Sequence[int]) -> Logits:
        """See `Session.feed`."""
        self._kept.sound = False
        logits = self._kept.session.feed(tokens)
        self._kept.tokens += tokens
        self._kept.sound = True
        return logits


class Pool:
    """At most `slots` sequences; one that is free is given to the prompt that begins like it.

    Args:
        loaded: makes sessions.
        slots: answers at a time.
        turns: where sessions are changed.
    """

    def __init__(self, loaded: Loaded, slots: int, turns: Turns) -> None:
        self._loaded = loaded
        self._turns = turns
        self._slots = slots
        self._free: list[_Kept] = []
        self._made = 0
        self._places = asyncio.Semaphore(slots)
        self._waiting = 0

    @asynccontextmanager
    async def session(self, prompt: Sequence[int]) -> AsyncIterator[Held]:
        """A session with as much of the prompt's beginning as there is.

        The prompt's last token is always left to compute: its logits are wanted.

        Raises:
            Refusal: too many wait.
        """
        if self._waiting >= QUEUE * self._slots:
            raise Refusal("too many requests wait", status=503, type="unavailable_error")
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        kept: _Kept | None = None
        try:
            kept = self._choose(prompt)
            if kept is None:
                kept = _Kept(await self._turns.run(self._loaded.session))
                self._made += 1
            yield Held(kept, await self._rewound(kept, prompt))
        finally:
            if kept is not None and kept.sound:
                self._free.append(kept)
            elif kept is not None:
                self._made -= 1
                kept.session.close()
            self._places.release()

    def _choose(self, prompt: Sequence[int]) -> _Kept | None:
        """The free sequence that begins most like the prompt; None to make a new one."""
        best = max(self._free, key=lambda kept: common(kept.tokens, prompt), default=None)
        if best is None:
            return None
        if self._made < self._slots and best.tokens and common(best.tokens, prompt) < 2:
            return None
        if common(best.tokens, prompt) < 2:
            best = self._free[0]  # the one that has been free for longest
        self._free.remove(best)
        return best

    async def _rewound(self, kept: _Kept, prompt: Sequence[int]) -> int:
        length = min(common(kept.tokens, prompt), len(prompt) - 1)
        if len(kept.tokens) > length:
            wanted = length
            # Whoever is cancelled in this wait never learns how much was cut.
            kept.sound = False
            length = await self._turns.run(lambda: kept.session.rewind(wanted))
            del kept.tokens[length:]
            kept.sound = True
        return length


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))
