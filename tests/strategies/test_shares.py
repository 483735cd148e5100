"""Weighted, sticky and the plain orders: who gets which share, and who stays where."""

from __future__ import annotations

from collections import Counter
from random import Random

import msgspec
import pytest

from llm_runner_router.deltas import collect
from llm_runner_router.errors import ConfigError
from llm_runner_router.strategies.pick import at_random, in_turn, least_loaded
from llm_runner_router.strategies.stats import TargetStats
from llm_runner_router.strategies.sticky import By, Sticky
from llm_runner_router.strategies.weighted import Weighted
from llm_runner_router.testing import FakeTarget, a_call, a_request
from llm_runner_router.types import Call, Request, Target

DRAWS = 20_000
TOLERANCE = 0.02
"""Five standard deviations of a share over `DRAWS`."""


def fakes(names: str) -> list[Target]:
    return [FakeTarget(name) for name in names]


def shares(counts: Counter[str]) -> dict[str, float]:
    total = counts.total()
    return {name: count / total for name, count in sorted(counts.items())}


def test_shares_follow_the_weights() -> None:
    pairs = list(zip(fakes("abcd"), (1.0, 2.0, 5.0, 0.0), strict=True))
    weighted = Weighted("w", pairs, Random(7))
    found = shares(Counter(weighted.pick().name for _ in range(DRAWS)))
    assert found == pytest.approx({"a": 1 / 8, "b": 2 / 8, "c": 5 / 8}, abs=TOLERANCE)


async def test_weighted_answers_with_what_it_drew() -> None:
    weighted = Weighted("w", [(FakeTarget("a"), 0), (FakeTarget("b"), 0.1)], Random(7))
    call = a_call()
    async with weighted.open(a_request(), call) as deltas:
        assert (await collect(deltas)).text == "b"
    assert [(d.strategy, d.chosen) for d in call.trace.decisions] == [("weighted", "b")]


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), ()])
def test_weights_that_make_no_sense(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="'w'"):
        Weighted("w", list(zip(fakes("ab"), weights, strict=False)), Random(7))


# ---------------------------------------------------------------- sticky


def sticky(names: str, weights: dict[str, float] | None = None, by: By = "session") -> Sticky:
    pairs = [(target, (weights or {}).get(target.name, 1.0)) for target in fakes(names)]
    return Sticky("s", pairs, by, Random(7))


def test_a_key_stays_and_keys_spread_by_weight() -> None:
    one, two = sticky("abc", {"c": 2.0}), sticky("cba", {"c": 2.0})
    keys = [f"session-{i}" for i in range(DRAWS)]
    picks = [one.pick(key).name for key in keys]
    assert picks == [two.pick(key).name for key in keys], "it depends on order or process"
    found = shares(Counter(picks))
    assert found == pytest.approx({"a": 1 / 4, "b": 1 / 4, "c": 2 / 4}, abs=TOLERANCE)


def test_a_new_target_takes_its_share_and_moves_nobody_else() -> None:
    before, after = sticky("abcd"), sticky("abcde")
    keys = [f"session-{i}" for i in range(DRAWS)]
    moved = [key for key in keys if before.pick(key).name != after.pick(key).name]
    assert len(moved) / DRAWS == pytest.approx(1 / 5, abs=TOLERANCE)
    assert {after.pick(key).name for key in moved} == {"e"}


def test_no_share_is_no_share() -> None:
    strategy = sticky("ab", {"a": 0.0})
    assert {strategy.pick(str(i)).name for i in range(100)} == {"b"}


@pytest.mark.parametrize("by", ["session", "user", "key"])
async def test_what_it_sticks_to(by: By) -> None:
    strategy = sticky("abcdefgh", by=by)

    async def answer(request: Request, call: Call) -> str:
        async with strategy.open(request, call) as deltas:
            return (await collect(deltas)).text

    def asked(value: str) -> tuple[Request, Call]:
        request, call = a_request(), a_call()
        if by == "user":
            return msgspec.structs.replace(request, user=value), call
        field = {"session": "session", "key": "caller"}[by]
        return request, msgspec.structs.replace(call, **{field: value})

    for value in ("x", "y", "z"):
        request, call = asked(value)
        assert {await answer(request, call) for _ in range(10)} == {strategy.pick(value).name}
        assert {d.reason for d in call.trace.decisions} == {f"kept for this {by}"}
    without = {await answer(a_request(), a_call()) for _ in range(100)}
    assert len(without) > 4, "without a key the target is drawn"


# ---------------------------------------------------------------- orders


def test_at_random_is_fair_and_complete() -> None:
    rng = Random(7)
    orders = [at_random("abc", rng) for _ in range(DRAWS)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    found = shares(Counter(order[0] for order in orders))
    assert found == pytest.approx(dict.fromkeys("abc", 1 / 3), abs=TOLERANCE)


def test_in_turn() -> None:
    assert ["".join(in_turn("abc", turn)) for turn in range(4)] == ["abc", "bca", "cab", "abc"]


def test_least_loaded_first_and_chance_among_equals() -> None:
    loads = {"a": 3, "b": 0, "c": 0, "d": 1}

    def snapshot(name: str) -> TargetStats:
        return TargetStats(name, in_flight=loads[name])

    rng = Random(7)
    orders = [least_loaded("abcd", snapshot, rng) for _ in range(200)]
    assert {tuple(order[2:]) for order in orders} == {("d", "a")}
    assert {order[0] for order in orders} == {"b", "c"}
