"""What becomes of runners that load slowly, fail or die, by the script of the mock engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from llm_runner_router.deltas import collect
from llm_runner_router.errors import LoadFailed, RunnerCrashed, Unavailable
from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse
from llm_runner_router.types import Message, Request, Sampling

from .locally import CALL, Locally

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

ASKED = Request(model="m", messages=(Message("user", "hello"),), sampling=Sampling(temperature=0.0))


def mock(**options: Any) -> LocalModel:
    zoo = resolve(parse("zoo:tiny-math"))
    return msgspec.structs.replace(zoo, name="mock", engine="mock", options=options)


@pytest.fixture
def local() -> Iterator[Locally]:
    local = Locally(load_timeout=20.0)
    yield local
    local.close()


def test_the_reason_of_a_failed_load_arrives(local: Locally) -> None:
    with pytest.raises(LoadFailed, match="the disk is full"):
        local.ask(mock(load_error="the disk is full"), ASKED)


def test_a_load_that_takes_too_long_is_ended() -> None:
    local = Locally(load_timeout=1.0)
    try:
        with pytest.raises(LoadFailed, match="not loaded within 1 s"):
            local.ask(mock(load_delay=60), ASKED)
        assert [row.pid for row in local.residency.status() if row.pid] == []
    finally:
        local.close()


def test_a_runner_that_keeps_dying_rests(local: Locally) -> None:
    dying = mock(crash_at=0)
    with pytest.raises((RunnerCrashed, Unavailable)):
        local.ask(dying, ASKED)
    with pytest.raises((RunnerCrashed, Unavailable)):
        local.ask(dying, ASKED)
    (row,) = local.residency.status()
    assert row.state in ("parked", "waiting")
    assert row.failures >= 2
    assert "exit code 3" in row.last_error


def test_a_death_in_the_middle_is_told_and_the_next_answer_comes(local: Locally) -> None:
    seen: list[str] = []

    async def halves() -> None:
        async with local.target(mock(crash_at=6)).open(ASKED, CALL) as deltas:
            async for delta in deltas:
                seen.append(delta.text)

    with pytest.raises(RunnerCrashed, match="exit code 3"):
        local.run(halves())
    assert "".join(seen) == "mock: "
    assert local.ask(mock(text="well"), ASKED).text == "mock: well"


def test_more_requests_than_slots_take_turns(local: Locally) -> None:
    slow = mock(text="x" * 20, delay=0.002)

    async def one() -> str:
        async with local.target(slow).open(ASKED, CALL) as deltas:
            return (await collect(deltas)).text

    async def many() -> set[str]:
        return set(await asyncio.gather(*(one() for _ in range(12))))

    assert local.run(many()) == {"mock: " + "x" * 20}
    (row,) = local.residency.status()
    assert (row.served, row.active, row.queued) == (12, 0, 0)
