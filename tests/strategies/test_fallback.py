"""Fallback: who is asked, in which order, and what is said when nobody answers."""

from __future__ import annotations

import msgspec
import pytest

from llm_runner_router import errors
from llm_runner_router.deltas import collect
from llm_runner_router.errors import (
    BadRequest,
    ConfigError,
    ConnectFailed,
    ContextTooLong,
    DeadlineExceeded,
    LoadFailed,
    RateLimited,
    RunnerError,
    StreamBroken,
    Unavailable,
    UpstreamRefused,
)
from llm_runner_router.strategies.fallback import Fallback
from llm_runner_router.strategies.requested import RequestedFallbacks
from llm_runner_router.testing import FakeTarget, a_call, a_request, deltas_of
from llm_runner_router.types import Call, Target


async def text(target: Target, call: Call | None = None) -> str:
    async with target.open(a_request(), call or a_call()) as deltas:
        return (await collect(deltas)).text


def failing(name: str, *failures: BaseException) -> FakeTarget:
    return FakeTarget(name, failures or [ConnectFailed("no connection")])


async def test_the_first_that_works_answers_and_nobody_else_is_asked() -> None:
    a, b, c = failing("a"), FakeTarget("b", deltas_of("from b")), FakeTarget("c")
    call = a_call()
    assert await text(Fallback("f", [a, b, c]), call) == "from b"
    assert (a.opened, b.opened, c.opened) == (1, 1, 0)
    (decision,) = call.trace.decisions
    assert (decision.strategy, decision.chosen) == ("fallback", "b")
    assert decision.reason == "a failed (no connection); b is next"


async def test_nothing_is_decided_while_the_first_works() -> None:
    call = a_call()
    assert await text(Fallback("f", [FakeTarget("a"), FakeTarget("b")]), call) == "a"
    assert call.trace.decisions == []


EVERY_ERROR = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RunnerError)
]


@pytest.mark.parametrize("kind", EVERY_ERROR)
async def test_it_moves_on_exactly_if_another_target_may_do_better(
    kind: type[RunnerError],
) -> None:
    a, b = failing("a", kind("no")), FakeTarget("b")
    strategy = Fallback("f", [a, b])
    if kind.elsewhere:
        assert await text(strategy) == "b"
    else:
        with pytest.raises(kind):
            await text(strategy)
        assert b.opened == 0


async def test_a_bug_is_not_routed_around() -> None:
    b = FakeTarget("b")
    with pytest.raises(ZeroDivisionError):
        await text(Fallback("f", [failing("a", ZeroDivisionError()), b]))
    assert b.opened == 0


async def test_after_the_first_delta_it_stays() -> None:
    b = FakeTarget("b")
    a = FakeTarget("a", [*deltas_of("half", finish=None), StreamBroken("cut")])
    with pytest.raises(StreamBroken, match="cut"):
        await text(Fallback("f", [a, b]))
    assert b.opened == 0


async def test_one_target_is_let_go_before_the_next_is_asked() -> None:
    a = failing("a")
    seen: list[int] = []

    def look(*_: object) -> tuple[object, ...]:
        seen.append(a.running)
        return deltas_of("b")

    await text(Fallback("f", [a, FakeTarget("b", look)]))  # type: ignore[arg-type]  # deltas are steps
    assert seen == [0]


# ---------------------------------------------------------------- nobody answers


async def error_of(*failures: RunnerError) -> RunnerError:
    targets = [failing(f"t{i}", failure) for i, failure in enumerate(failures)]
    with pytest.raises(RunnerError) as caught:
        await text(Fallback("f", targets))
    return caught.value


async def test_a_single_failure_speaks_for_itself() -> None:
    limited = RateLimited("slow down", retry_after=7)
    assert await error_of(limited) is limited
    assert limited.target == "t0"


async def test_many_failures_are_named_and_kept_as_the_cause() -> None:
    error = await error_of(ConnectFailed("down"), RateLimited("slow", retry_after=7))
    assert type(error) is Unavailable
    assert error.status == 503
    assert "t0: down" in error.message
    assert "t1: slow" in error.message
    assert error.retry_after == 7
    assert isinstance(error.__cause__, ExceptionGroup)
    assert [type(e) for e in error.__cause__.exceptions] == [ConnectFailed, RateLimited]


async def test_what_all_say_is_said() -> None:
    error = await error_of(RateLimited("a", retry_after=9), RateLimited("b", retry_after=4))
    assert type(error) is RateLimited
    assert (error.status, error.retry_after) == (429, 4)
    error = await error_of(ContextTooLong("a"), ContextTooLong("b"))
    assert (error.status, error.code) == (400, "context_length_exceeded")


async def test_it_does_not_promise_that_asking_again_helps() -> None:
    error = await error_of(UpstreamRefused("key"), LoadFailed("file", hint="pull it again"))
    assert type(error) is UpstreamRefused
    assert not error.retryable
    assert error.hint == "pull it again"


async def test_a_deadline_ends_everything() -> None:
    error = await error_of(ConnectFailed("down"), DeadlineExceeded("over"), ConnectFailed("down"))
    assert type(error) is DeadlineExceeded


def test_nothing_to_fall_back_on_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="'f' has no targets"):
        Fallback("f", [])


# ---------------------------------------------------------------- asked for by the request


async def test_the_request_names_its_own_fallbacks() -> None:
    targets = {"b": failing("b"), "c": FakeTarget("c")}
    strategy = RequestedFallbacks(failing("a"), targets.__getitem__)
    request = msgspec.structs.replace(a_request(), fallbacks=("b", "c"))
    async with strategy.open(request, a_call()) as deltas:
        assert (await collect(deltas)).text == "c"
    with pytest.raises(ConnectFailed):
        await text(strategy)


async def test_a_wrong_request_is_not_sent_to_its_fallbacks() -> None:
    b = FakeTarget("b")
    with pytest.raises(BadRequest):
        await text(RequestedFallbacks(failing("a", BadRequest("no")), {"b": b}.__getitem__))
    assert b.opened == 0
