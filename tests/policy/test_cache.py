"""The exact cache: equal requests, and nothing else, share an answer."""

from __future__ import annotations

import msgspec

from llm_runner_router.deltas import Answer, Choice, collect
from llm_runner_router.policy.cache import AnswerCache, Cache, digest
from llm_runner_router.testing import FakeClock, FakeTarget, deltas_of
from llm_runner_router.types import Call, Message, Request, Sampling


def ask(text: str, *, cache: bool = True, temperature: float | None = None) -> Request:
    return Request(
        model="m",
        messages=(Message("user", text),),
        sampling=Sampling(temperature=temperature),
        cache=cache,
    )


async def answer(target: Cache, request: Request) -> tuple[str, str | None]:
    call = Call(id="1", started=0.0)
    async with target.open(request, call) as deltas:
        result = await collect(deltas)
    return result.text, call.trace.notes.get("cache")


async def test_an_equal_request_is_answered_once() -> None:
    inner = FakeTarget("inner", deltas_of("42"))
    target = Cache(inner, AnswerCache(FakeClock()))
    assert await answer(target, ask("12 + 30")) == ("42", "miss")
    assert await answer(target, ask("12 + 30")) == ("42", "hit")
    streamed = msgspec.structs.replace(ask("12 + 30"), stream=True)
    assert await answer(target, streamed) == ("42", "hit")
    assert inner.opened == 1


async def test_symbols_settings_and_permission_make_a_difference() -> None:
    inner = FakeTarget("inner", deltas_of("x"))
    target = Cache(inner, AnswerCache(FakeClock()))
    for request in (
        ask("12 + 30"),
        ask("12 - 30"),
        ask("12 + 30", temperature=0.5),
        ask("12 + 30", cache=False),
        ask("12 + 30", cache=False),
    ):
        await answer(target, request)
    assert inner.opened == 5


async def test_an_answer_that_was_cut_is_not_kept() -> None:
    inner = FakeTarget("inner", deltas_of("half", finish="length"))
    target = Cache(inner, AnswerCache(FakeClock()))
    await answer(target, ask("q"))
    assert await answer(target, ask("q")) == ("half", "miss")


def test_the_cache_is_bounded_in_bytes_and_age() -> None:
    clock = FakeClock()
    kept = Answer((Choice(0, "x" * 1000, "", "", (), "stop"),), None, None)
    cache = AnswerCache(clock, max_bytes=3500, max_age=10)
    keys = [digest(ask(str(i))) for i in range(4)]
    for key in keys:
        cache.put(key, kept)
    assert cache.get(keys[0]) is None, "the oldest made room"
    assert cache.get(keys[3]) == kept
    clock.advance(11)
    assert cache.get(keys[3]) is None, "too old"
