"""Every strategy, and compositions of them, in every situation of the conformance suite.

To add a target, put a factory into `TARGETS`: it builds the target from the fakes it is given.
"""

from __future__ import annotations

from random import Random

import pytest

from llm_runner_router.config import Objective
from llm_runner_router.strategies.auto import Auto, Choice
from llm_runner_router.strategies.fallback import Fallback
from llm_runner_router.strategies.race import Race
from llm_runner_router.strategies.requested import RequestedFallbacks
from llm_runner_router.strategies.stats import LiveStats
from llm_runner_router.strategies.sticky import Sticky
from llm_runner_router.strategies.weighted import Weighted
from llm_runner_router.testing import SITUATIONS, FakeClock, MakeTarget, check_situation
from llm_runner_router.types import ModelCard, Target


def auto(targets: list[Target], objective: Objective = "balanced") -> Auto:
    clock = FakeClock()
    return Auto(
        "auto",
        [Choice(target, ModelCard(name=target.name)) for target in targets],
        objective,
        stats=LiveStats(clock),
        classify=lambda request: ("other", 0.0),
        clock=clock,
        rng=Random(1),
    )


def weighted(*targets: Target) -> Weighted:
    return Weighted("weighted", [(target, i + 1.0) for i, target in enumerate(targets)], Random(1))


def sticky(*targets: Target) -> Sticky:
    return Sticky("sticky", [(target, 1.0) for target in targets], "session", Random(1))


TARGETS: dict[str, MakeTarget] = {
    "fake": lambda fake: fake("a"),
    "fallback": lambda fake: Fallback("f", [fake("a"), fake("b"), fake("c")]),
    "fallback of one": lambda fake: Fallback("f", [fake("a")]),
    "race": lambda fake: Race("r", [fake("a"), fake("b"), fake("c")]),
    "race of one": lambda fake: Race("r", [fake("a")]),
    "weighted": lambda fake: weighted(fake("a"), fake("b")),
    "sticky": lambda fake: sticky(fake("a"), fake("b")),
    "requested": lambda fake: RequestedFallbacks(fake("a"), fake),
    "auto": lambda fake: auto([fake("a"), fake("b")]),
    "auto:random": lambda fake: auto([fake("a"), fake("b")], "random"),
    "auto:round-robin": lambda fake: auto([fake("a"), fake("b")], "round-robin"),
    "auto:least-loaded": lambda fake: auto([fake("a"), fake("b")], "least-loaded"),
    "fallback of race of weighted": lambda fake: Fallback(
        "f", [Race("r", [weighted(fake("a"), fake("b")), fake("c")]), fake("d")]
    ),
    "race of fallbacks": lambda fake: Race(
        "r", [Fallback("f", [fake("a"), fake("b")]), Fallback("g", [fake("c"), fake("d")])]
    ),
    "race of races": lambda fake: Race(
        "r", [Race("s", [fake("a"), fake("b")]), Race("t", [fake("c"), fake("d")])]
    ),
    "auto of sticky and race": lambda fake: auto(
        [sticky(fake("a"), fake("b")), Race("r", [fake("c"), fake("d")])]
    ),
    "weighted of fallbacks of auto": lambda fake: weighted(
        Fallback("f", [auto([fake("a"), fake("b")]), fake("c")]), fake("d")
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", TARGETS)
async def test_it_does_what_a_target_must(name: str, situation: str) -> None:
    await check_situation(situation, TARGETS[name])
