"""Every policy, and the whole stack that the app puts around a model, in every situation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llm_runner_router.policy.cache import AnswerCache, Cache
from llm_runner_router.policy.deadline import Deadline
from llm_runner_router.policy.measure import Measure
from llm_runner_router.policy.record import Record
from llm_runner_router.policy.sink import FileSink
from llm_runner_router.strategies.fallback import Fallback
from llm_runner_router.strategies.race import Race
from llm_runner_router.strategies.requested import RequestedFallbacks
from llm_runner_router.strategies.stats import LiveStats
from llm_runner_router.testing import SITUATIONS, FakeClock, MakeTarget, check_situation
from llm_runner_router.types import Target

clock = FakeClock()  # the calls of the suite start at 0


def measured(target: Target) -> Measure:
    return Measure(target, LiveStats(clock), clock)


def front(target: Target, lookup: Callable[[str], Target]) -> Target:
    """The order of `App._front`."""
    asked: Target = RequestedFallbacks(target, lookup)
    return Record(Deadline(Cache(asked, AnswerCache(clock)), 600, clock), FileSink(None), clock)


TARGETS: dict[str, MakeTarget] = {
    "cache": lambda fake: Cache(fake("a"), AnswerCache(clock)),
    "deadline": lambda fake: Deadline(fake("a"), 600, clock),
    "measure": lambda fake: measured(fake("a")),
    "record": lambda fake: Record(fake("a"), FileSink(None), clock, keep_content=True),
    "front of one": lambda fake: front(measured(fake("a")), fake),
    "front of a race of fallbacks": lambda fake: front(
        Race(
            "r",
            [
                Fallback("f", [measured(fake("a")), measured(fake("b"))]),
                Deadline(measured(fake("c")), 600, clock),
            ],
        ),
        fake,
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", TARGETS)
async def test_it_does_what_a_target_must(name: str, situation: str) -> None:
    await check_situation(situation, TARGETS[name])
