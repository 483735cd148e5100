"""Ask several targets at once; the first to give a delta answers.

Use it to cut the time to the first token where the load allows asking twice: every contender is
paid for up to the moment it loses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import msgspec

from llm_runner_router.errors import ConfigError, RunnerError, StreamBroken
from llm_runner_router.types import Call, Decision, Delta, Request, Target, Trace

from .failures import combined

AHEAD = 8
"""Deltas a contender may be ahead of the reader."""


class Race:
    """The first of `targets` to give a delta answers, the others are cancelled and closed.

    Every contender lives in a task of its own from entering to leaving, and its deltas come
    through a channel. Handing an open stream from one task to another would be faster, but what
    is inside may hang on its task (`asyncio.timeout`, task groups), and a contender that
    *succeeded* in the same tick as the winner would be left open.
    """

    def __init__(self, name: str, targets: Sequence[Target]) -> None:
        if not targets:
            raise ConfigError(f"the race {name!r} has no targets")
        self.name = name
        self.targets = tuple(targets)

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        """See `Target.open`.

        Raises:
            RunnerError: if all failed, see `failures.combined`; at once if one failed in a way
                that no other target can better.
        """
        news: asyncio.Queue[_Contender] = asyncio.Queue()
        contenders = [_Contender(target, request, call, news) for target in self.targets]
        tasks = [asyncio.create_task(c.run(), name=f"race {c.target.name}") for c in contenders]
        try:
            winner = await self._winner(news)
            for contender, task in zip(contenders, tasks, strict=True):
                if contender is not winner:
                    task.cancel()
            winner.won(call, self._decision(winner))
            yield winner
        finally:
            await _stop(tasks)

    async def _winner(self, news: asyncio.Queue[_Contender]) -> _Contender:
        failures: list[RunnerError] = []
        for _ in self.targets:
            contender = await news.get()
            error = contender.error
            if error is None or contender.gave:
                return contender
            if not isinstance(error, RunnerError):
                raise error  # a bug must not be hidden behind a target that works
            error.target = error.target or contender.target.name
            if not error.elsewhere:
                raise error
            failures.append(error)
        raise combined(self.name, failures)

    def _decision(self, winner: _Contender) -> Decision:
        reason = f"first of {len(self.targets)} to give a token"
        return Decision(strategy="race", chosen=winner.target.name, reason=reason)


class _Contender:
    """One target in its own task, and the channel its deltas come through."""

    def __init__(
        self, target: Target, request: Request, call: Call, news: asyncio.Queue[_Contender]
    ) -> None:
        # Decisions of losers would only confuse; attempts of all are worth knowing.
        self._trace = Trace()
        self._trace.attempts = call.trace.attempts
        self._call = msgspec.structs.replace(call, trace=self._trace)
        self._request = request
        self._news = news
        self._channel: asyncio.Queue[Delta | None] = asyncio.Queue(AHEAD)
        self._told = False
        self._over = False
        self.gave = False
        self.target = target
        self.error: Exception | None = None

    async def run(self) -> None:
        """Answer into the channel; tell the news once, at the first delta or at a failure."""
        try:
            async with self.target.open(self._request, self._call) as deltas:
                async for delta in deltas:
                    await self._channel.put(delta)
                    self.gave = True
                    self._tell()
            if not self.gave:
                self.error = StreamBroken("the stream ended before the first delta")
        except Exception as exc:  # handed to the reader, who raises it
            self.error = exc
        except asyncio.CancelledError:
            self.error = StreamBroken("the contender was cancelled")  # unless by us, news to all
            raise
        finally:
            self._over = True
            self._tell()
            if self._channel.empty():
                self._channel.put_nowait(None)  # wakes the reader

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._news.put_nowait(self)

    def won(self, call: Call, decision: Decision) -> None:
        """From now on what this contender notes goes into the caller's trace."""
        call.trace.decisions.append(decision)
        call.trace.decisions.extend(self._trace.decisions)
        self._trace.decisions = call.trace.decisions
        call.trace.notes.update(self._trace.notes)
        self._trace.notes = call.trace.notes

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if not (self._over and self._channel.empty()):
            delta = await self._channel.get()
            if delta is not None:
                return delta
        if self.error is not None:
            raise self.error
        raise StopAsyncIteration


async def _stop(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel `tasks` and wait until all are over, even if this wait is itself cancelled."""
    left = {task for task in tasks if not task.done()}
    for task in left:
        task.cancel()
    cancelled: asyncio.CancelledError | None = None
    while left:
        try:
            _, left = await asyncio.wait(left)
        except asyncio.CancelledError as exc:
            cancelled = exc
            left = {task for task in left if not task.done()}
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen; closing a loser may fail without harm to the answer
    if cancelled is not None:
        raise cancelled
