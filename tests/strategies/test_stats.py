"""Live figures: averages, counts, and when a target rests."""

from __future__ import annotations

import pytest

from llm_runner_router.strategies.stats import (
    ALPHA,
    FAILURES,
    FIRST_REST,
    LONGEST_REST,
    LiveStats,
    TargetStats,
)
from llm_runner_router.testing import FakeClock


def test_nothing_is_known_of_a_new_target() -> None:
    assert LiveStats(FakeClock()).snapshot("a") == TargetStats("a")


def test_counts_and_averages() -> None:
    stats = LiveStats(FakeClock())
    stats.begin("a")
    stats.begin("a")
    assert stats.snapshot("a").in_flight == 2
    stats.first("a", 1.0)
    stats.end("a", "ok", 100, 2.0)
    first = stats.snapshot("a")
    assert (first.in_flight, first.first_token, first.speed, first.tokens) == (1, 1.0, 50.0, 100)
    stats.first("a", 2.0)
    stats.end("a", "ok", 10, 0.1)
    second = stats.snapshot("a")
    assert second.first_token == pytest.approx(1.0 + ALPHA)
    assert second.speed == pytest.approx(50.0 + ALPHA * 50.0)
    assert (second.in_flight, second.requests, second.errors) == (0, 2, 0)


def test_an_end_without_figures_leaves_the_speed() -> None:
    stats = LiveStats(FakeClock())
    stats.begin("a")
    stats.end("a", "cancelled", 0, 0.0)
    assert stats.snapshot("a").speed is None
    assert stats.snapshot("a").requests == 1


def fail(stats: LiveStats, times: int, outcome: str = "ConnectFailed") -> None:
    for _ in range(times):
        stats.begin("a")
        stats.end("a", outcome, 0, 0.0)


def test_a_target_rests_after_failures_in_a_row_and_longer_each_time() -> None:
    clock = FakeClock(100.0)
    stats = LiveStats(clock)
    fail(stats, FAILURES - 1)
    assert stats.healthy("a", clock())
    fail(stats, 1)
    assert not stats.healthy("a", clock())
    assert not stats.healthy("a", clock() + FIRST_REST - 0.01)
    assert stats.healthy("a", clock() + FIRST_REST), "after the rest it is tried again"
    fail(stats, 1)
    assert not stats.healthy("a", clock() + FIRST_REST)
    assert stats.healthy("a", clock() + 2 * FIRST_REST)
    fail(stats, 2000)
    assert stats.healthy("a", clock() + LONGEST_REST)


def test_one_answer_ends_the_rest() -> None:
    clock = FakeClock()
    stats = LiveStats(clock)
    fail(stats, FAILURES)
    stats.begin("a")
    stats.end("a", "ok", 1, 1.0)
    assert stats.healthy("a", clock())
    assert stats.snapshot("a").failures == 0


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [
        ("ConnectFailed", True),
        ("RateLimited", True),
        ("UpstreamRefused", True),
        ("RunnerCrashed", True),
        ("ZeroDivisionError", True),
        ("BadRequest", False),
        ("ContextTooLong", False),
        ("Unsupported", False),
        ("Overloaded", False),
        ("DeadlineExceeded", False),
        ("cancelled", False),
    ],
)
def test_what_speaks_against_a_target(outcome: str, counts: bool) -> None:
    stats = LiveStats(FakeClock())
    fail(stats, FAILURES, outcome)
    assert stats.healthy("a", 0.0) is not counts
