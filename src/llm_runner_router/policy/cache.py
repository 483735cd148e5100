"""Give an equal earlier answer again, when the request says it may.

Knows: whole requests and whole answers, equal or not. Does not know similar ones: a semantic
cache serves wrong answers unless it is verified, so there is none here. Off unless
`Request.cache` is set.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from llm_runner_router.deltas import Answer, Choice, Collector
from llm_runner_router.types import Call, Delta, Price, Request, Target, ToolCallDelta


class AnswerCache:
    """Answers by request digest: least recently used first out, bounded in bytes and in age.

    Several event loops may share one: each step holds a lock for the moment it takes.

    Args:
        clock: monotonic seconds.
        max_bytes: bound on the encoded size of all answers together.
        max_age: seconds after which an answer is not given again.
    """

    def __init__(
        self, clock: Callable[[], float], *, max_bytes: int = 16 << 20, max_age: float = 3600.0
    ) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._bytes = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[float, int, Answer]] = OrderedDict()

    def get(self, key: bytes) -> Answer | None:
        """The answer kept under `key`, unless it is too old."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            if self._clock() - kept[0] > self._max_age:
                self._drop(key)
                return None
            self._kept.move_to_end(key)
            return kept[2]

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep `answer`; one larger than the whole cache is not kept."""
        size = len(msgspec.json.encode(answer))
        if size > self._max_bytes:
            return
        with self._lock:
            if key in self._kept:
                self._drop(key)
            while self._bytes + size > self._max_bytes:
                self._drop(next(iter(self._kept)))
            self._kept[key] = (self._clock(), size, answer)
            self._bytes += size

    def _drop(self, key: bytes) -> None:
        self._bytes -= self._kept.pop(key)[1]


def digest(request: Request) -> bytes:
    """Equal for requests that ask the same; how the answer travels does not count."""
    asked = msgspec.structs.replace(
        request, wire=None, stream=False, include_usage=False, fallbacks=(), user=None
    )
    return hashlib.sha256(msgspec.json.encode(asked)).digest()


def replay(answer: Answer) -> tuple[Delta, ...]:
    """The deltas of a kept answer. It costs nothing a second time, so its price is zero."""
    deltas = [_delta(choice) for choice in answer.choices]
    origin = answer.origin and msgspec.structs.replace(answer.origin, price=Price())
    deltas[0] = msgspec.structs.replace(deltas[0], origin=origin)
    deltas[-1] = msgspec.structs.replace(deltas[-1], usage=answer.usage)
    return tuple(deltas)


def _delta(choice: Choice) -> Delta:
    calls = tuple(
        ToolCallDelta(index=i, id=c.id, name=c.name, arguments=c.arguments)
        for i, c in enumerate(choice.tool_calls)
    )
    return Delta(
        index=choice.index,
        role="assistant",
        text=choice.text,
        reasoning=choice.reasoning,
        refusal=choice.refusal,
        tool_calls=calls,
        finish=choice.finish,
    )


class Cache:
    """A target that answers from `cache` when the request allows it and an equal answer is kept.

    Only answers that ended cleanly, without log-probabilities, are kept.
    """

    def __init__(self, target: Target, cache: AnswerCache) -> None:
        self.target = target
        self.name = target.name
        self._cache = cache

    def open(
        self, request: Request, call: Call
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """See `Target.open`."""
        if not request.cache or request.sampling.logprobs:
            return self.target.open(request, call)
        return self._open(request, call)

    @asynccontextmanager
    async def _open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        key = digest(request)
        kept = self._cache.get(key)
        call.trace.notes["cache"] = "miss" if kept is None else "hit"
        if kept is not None:
            yield _Ready(replay(kept))
            return
        async with self.target.open(request, call) as deltas:
            yield _Keeping(deltas, lambda answer: self._cache.put(key, answer))


class _Ready:
    """Deltas that are all there."""

    def __init__(self, deltas: tuple[Delta, ...]) -> None:
        self._left = iter(deltas)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        for delta in self._left:
            return delta
        raise StopAsyncIteration


class _Keeping:
    """Passes deltas on, and hands the whole answer over when they ended cleanly."""

    def __init__(self, deltas: AsyncIterator[Delta], keep: Callable[[Answer], None]) -> None:
        self._deltas = deltas
        self._keep = keep
        self._collector = Collector()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        try:
            delta = await anext(self._deltas)
        except StopAsyncIteration:
            answer = self._collector.answer()
            if answer.choices and all(c.finish in ("stop", "tool_calls") for c in answer.choices):
                self._keep(answer)
            raise
        self._collector.add(delta)
        return delta
