"""Auto: the choice carried out, what is noted, and what happens when the chosen one fails."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest

from llm_runner_router.config import Objective
from llm_runner_router.deltas import collect
from llm_runner_router.errors import BadRequest, ConnectFailed, Unavailable, Unsupported
from llm_runner_router.strategies.auto import ATTEMPTS, Auto, Choice
from llm_runner_router.strategies.stats import FAILURES, LiveStats
from llm_runner_router.strategies.tasks import classify
from llm_runner_router.testing import FakeClock, FakeTarget, a_call, a_request
from llm_runner_router.types import Call, ModelCard, Outlook, Request, Tool

SCORES = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6, "e": 0.5}


class Pool:
    """Five targets with falling scores in arithmetic, and the parts of an `Auto` over them."""

    def __init__(self, *failing: str, objective: Objective = "quality") -> None:
        self.clock = FakeClock()
        self.stats = LiveStats(self.clock)
        self.targets = {
            name: FakeTarget(name, [ConnectFailed("down")] if name in failing else None)
            for name in SCORES
        }
        self.auto = Auto(
            "auto",
            [
                Choice(target, ModelCard(name, local=True, scores={"arithmetic": SCORES[name]}))
                for name, target in self.targets.items()
            ],
            objective,
            stats=self.stats,
            classify=classify,
            clock=self.clock,
            rng=Random(1),
        )

    async def ask(self, call: Call | None = None, request: Request | None = None) -> str:
        request = request or a_request("What is 12 + 30?")
        async with self.auto.open(request, call or a_call()) as deltas:
            return (await collect(deltas)).text

    @property
    def asked(self) -> str:
        return "".join(name for name, target in self.targets.items() if target.opened)


async def test_the_best_answers_and_the_reason_is_noted() -> None:
    pool, call = Pool(), a_call()
    assert await pool.ask(call) == "a"
    assert pool.asked == "a"
    (decision,) = call.trace.decisions
    assert (decision.strategy, decision.chosen, decision.task) == (
        "auto:quality",
        "a",
        "arithmetic",
    )
    assert decision.reason.startswith("arithmetic: a scores 0.90, the best of 5")
    assert [c.name for c in decision.candidates] == list("abcde")


async def test_the_next_best_stands_in() -> None:
    pool, call = Pool("a", "b"), a_call()
    assert await pool.ask(call) == "c"
    assert [d.chosen for d in call.trace.decisions] == ["a", "b", "c"]
    assert call.trace.decisions[-1].reason == "b failed (down); c is next"
    assert call.trace.decisions[-1].task == "arithmetic"


async def test_there_is_a_bound_to_trying() -> None:
    pool = Pool(*SCORES)
    with pytest.raises(ConnectFailed, match="every target of 'auto' failed"):
        await pool.ask()
    assert pool.asked == "abcde"[:ATTEMPTS]


async def test_a_wrong_request_is_asked_once() -> None:
    pool = Pool()
    pool.targets["a"] = FakeTarget("a", [BadRequest("no")])
    pool.auto._targets["a"] = pool.targets["a"]
    with pytest.raises(BadRequest):
        await pool.ask()
    assert pool.asked == "a"


async def test_deciding_asks_nobody_and_changes_nothing() -> None:
    pool = Pool(objective="round-robin")
    request = a_request("What is 12 + 30?")
    assert [pool.auto.decide(request).chosen for _ in range(3)] == ["a", "a", "a"]
    assert pool.asked == ""


async def test_in_turn() -> None:
    pool = Pool(objective="round-robin")
    assert [await pool.ask() for _ in range(7)] == list("abcdeab")


async def test_by_chance() -> None:
    pool = Pool(objective="random")
    assert {await pool.ask() for _ in range(100)} == set("abcde")


async def test_the_least_loaded() -> None:
    pool = Pool(objective="least-loaded")
    for name in "abde":
        pool.stats.begin(name)
    assert {await pool.ask() for _ in range(20)} == {"c"}


async def test_a_resting_target_is_not_asked_until_it_has_rested() -> None:
    pool = Pool()
    for _ in range(FAILURES):
        pool.stats.begin("a")
        pool.stats.end("a", "ConnectFailed", 0, 0.0)
    assert await pool.ask() == "b"
    pool.clock.advance(3600)
    assert await pool.ask() == "a"


async def test_nobody_can() -> None:
    request = msgspec.structs.replace(a_request(), tools=(Tool("calculator"),))
    pool = Pool()
    with pytest.raises(Unsupported, match="it cannot do tools"):
        await pool.ask(request=request)
    assert pool.asked == ""


async def test_nothing_to_choose_from() -> None:
    clock = FakeClock()
    auto = Auto(
        "auto", [], "cost", stats=LiveStats(clock), classify=classify, clock=clock, rng=Random(1)
    )
    with pytest.raises(Unavailable):
        async with auto.open(a_request(), a_call()):
            raise AssertionError("entered")


@pytest.mark.parametrize("objective", ["speed", "balanced", "least-loaded"])
def test_replicas_differ_by_what_they_have_of_the_prompt(objective: Objective) -> None:
    pool = Pool()
    kept = {"a": "sea", "b": "river", "c": "lake"}

    def outlook(name: str) -> Callable[[Request], Outlook]:
        def of(request: Request) -> Outlook:
            has = kept[name] in request.messages[0].text
            return Outlook(100, 90 if has else 0, reading=1000.0)

        return of

    choices = [
        Choice(target, ModelCard(name, local=True), outlook(name))
        for name, target in pool.targets.items()
        if name in kept
    ]
    replicas = Auto(
        "replicas",
        choices,
        objective,
        stats=pool.stats,
        classify=classify,
        clock=pool.clock,
        rng=Random(1),
    )
    for name, word in kept.items():
        for _ in range(5):
            assert replicas.decide(a_request(f"Tell me about the {word}.")).chosen == name
    pool.stats.begin("b")
    busy = replicas.decide(a_request("Tell me about the river."))
    if objective == "least-loaded":
        assert busy.chosen != "b", "who waits has gained nothing"
