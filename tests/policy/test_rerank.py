"""Rankings have a deadline and a record, like answers."""

from __future__ import annotations

import asyncio

import pytest

from llm_runner_router.errors import DeadlineExceeded, Overloaded
from llm_runner_router.policy.record import RequestRecord
from llm_runner_router.policy.rerank import GuardedReranker
from llm_runner_router.testing import FakeClock, FakeReranker, Gate, a_call, check_reranker
from llm_runner_router.types import Call, Ranking, RerankRequest

ASKED = RerankRequest("r", "a b", ("a", "a b"))


class Kept:
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def put(self, record: RequestRecord) -> None:
        self.records.append(record)


class Slow:
    name = "slow"

    async def rerank(self, request: RerankRequest, call: Call) -> Ranking:
        await Gate().wait()
        raise AssertionError("the gate stays shut")


async def test_a_good_ranking() -> None:
    kept, clock = Kept(), FakeClock(1.0)
    guarded = GuardedReranker(FakeReranker("r"), kept, 5, clock)
    result = await guarded.rerank(ASKED, a_call())
    assert [one.index for one in result.results] == [1, 0]
    (record,) = kept.records
    assert (record.status, record.asked, record.target, record.total_ms) == (200, "r", "r", 1000.0)
    assert record.usage == result.usage
    await check_reranker(guarded)


async def test_errors_and_deadlines_are_recorded() -> None:
    kept, loop = Kept(), asyncio.get_running_loop()
    failing = GuardedReranker(FakeReranker("r", error=Overloaded("full")), kept, 5, FakeClock())
    with pytest.raises(Overloaded):
        await failing.rerank(ASKED, a_call())
    call = Call(id="c", started=loop.time(), deadline=loop.time() + 0.02)
    with pytest.raises(DeadlineExceeded, match="no ranking within"):
        await GuardedReranker(Slow(), kept, 1000, loop.time).rerank(ASKED, call)
    assert [record.status for record in kept.records] == [503, 504]
    assert kept.records[0].error == "Overloaded"
