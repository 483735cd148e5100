"""The scheduler's decisions one by one; whole random schedules are in `test_schedules.py`."""

from __future__ import annotations

from math import inf

from llm_runner_router.engine.effects import Effect, Grant, Group, Limits, Need, Refuse, Start, Stop
from llm_runner_router.engine.scheduler import Scheduler

A = Need("a", bytes=6, slots=2)
B = Need("b", bytes=6, slots=2)
SMALL = Need("s", bytes=2, slots=1)


def new(**changes: float) -> Scheduler:
    settings = {"budget": 10, "max_queue": 4, **changes}
    return Scheduler(Limits(**settings))  # type: ignore[arg-type]  # whole numbers where needed


def loaded(scheduler: Scheduler, need: Need, now: float = 0.0) -> int:
    """Load `need` through a request that is released at once; the runner's number."""
    start = scheduler.on_request(900, need, now)[0]
    assert isinstance(start, Start)
    scheduler.on_loaded(start.runner, now)
    scheduler.on_release(900, now)
    return start.runner


def test_a_first_request_starts_the_model_and_later_ones_wait_for_it() -> None:
    s = new()
    assert s.on_request(1, A, 0) == [Start(1, "a")]
    assert s.on_request(2, A, 0) == []
    assert s.on_request(3, A, 0) == []
    assert s.on_loaded(1, 1) == [Grant(1, 1), Grant(2, 1)]
    assert s.on_release(1, 2) == [Grant(3, 1)]


def test_a_full_queue_refuses_with_a_time() -> None:
    s = new(max_queue=1)
    loaded(s, A)
    for ticket in (1, 2):
        assert s.on_request(ticket, A, 1) == [Grant(ticket, 1)]
    assert s.on_request(3, A, 1) == []
    (refused,) = s.on_request(4, A, 1)
    assert isinstance(refused, Refuse)
    assert refused.why == "overloaded"
    assert refused.retry_after is not None
    assert 1 <= refused.retry_after <= 60


def test_low_priority_comes_last_one_at_a_time_and_leaves_a_slot() -> None:
    s = new()
    three = Need("t", bytes=6, slots=3)
    loaded(s, three)
    assert s.on_request(1, three, 1, low=True) == [Grant(1, 1)], "nothing else is going on"
    assert s.on_request(2, three, 1, low=True) == [], "one at a time"
    assert s.on_request(3, three, 1) == [Grant(3, 1)]
    assert s.on_request(4, three, 1) == [Grant(4, 1)]
    assert s.on_request(5, three, 1) == []
    assert s.on_release(1, 2) == [Grant(5, 1)], "it came later and goes first"
    assert s.on_release(5, 3) == [], "the last slot stays free"
    assert s.on_release(4, 3) == [Grant(2, 1)]


def test_low_priority_fills_no_queue_and_drains_no_model() -> None:
    s = new(max_queue=0)
    loaded(s, A)
    granted = s.on_request(1, A, 1)
    assert granted == [Grant(1, 1)]
    assert s.on_request(2, A, 1, low=True) == []
    (refused,) = s.on_request(3, A, 1, low=True)
    assert isinstance(refused, Refuse)
    assert refused.why == "overloaded"
    assert s.on_request(4, A, 1) == [Grant(4, 1)], "those of low priority do not count for it"
    s = new()
    loaded(s, A)
    assert s.on_request(1, A, 1) == [Grant(1, 1)]
    assert s.on_request(2, B, 1, low=True) == [], "there is no room while A works"
    assert s.on_tick(50) == [], "and it stays so, whatever its patience"
    assert s.on_request(3, A, 50) == [Grant(3, 1)]
    assert s.on_release(3, 51) == []
    assert s.on_release(1, 52) == [Stop(1, "evicted")], "an idle model makes room"


def test_no_queue_still_lets_the_slots_of_a_loading_model_wait() -> None:
    s = new(max_queue=0)
    assert s.on_request(1, A, 0) == [Start(1, "a")]
    assert s.on_request(2, A, 0) == []
    (refused,) = s.on_request(3, A, 0)
    assert isinstance(refused, Refuse)


def test_larger_than_the_budget_is_refused_with_both_numbers() -> None:
    s = new(budget=5 << 20)
    (refused,) = s.on_request(1, Need("big", 7 << 20, 1), 0)
    assert isinstance(refused, Refuse)
    assert refused.why == "too_big"
    assert "7 MiB" in refused.message
    assert "5 MiB" in refused.message


def test_the_top_of_a_load_must_fit_and_is_free_again_after_it() -> None:
    heavy = Need("heavy", 4, 1, loading=9)
    s = new(budget=10)
    (start,) = s.on_request(1, heavy, 0)
    assert isinstance(start, Start)
    assert s.on_request(2, SMALL, 0) == [], "1 of 10 is left while it loads"
    assert s.on_loaded(start.runner, 1) == [Grant(1, start.runner), Start(2, "s")]
    assert [view.bytes for view in s.runners()] == [4, 2]
    (refused,) = new(budget=8).on_request(1, heavy, 0)
    assert isinstance(refused, Refuse), "it can never be loaded"


def test_an_engines_code_counts_once_for_all_its_runners() -> None:
    one, two = (Need(key, 3, 1, engine="e", code=3) for key in "xy")
    s = new(budget=9)
    loaded(s, one)
    assert s.on_request(1, two, 1) == [Start(2, "y")], "3 + 3 and the code"
    assert [view.bytes for view in s.runners()] == [4, 4], "each has its part of the code"
    other = Need("z", 3, 1, engine="f", code=3)
    s = new(budget=9)
    loaded(s, one)
    assert s.on_request(1, other, 1) == [Stop(1, "evicted")], "its code is its own"


def test_the_last_runner_of_an_engine_takes_its_code_along() -> None:
    s = new(budget=10)
    loaded(s, Need("x", 4, 1, engine="e", code=4))
    assert s.on_request(1, Need("big", 9, 1), 1) == [Stop(1, "evicted")]
    assert s.on_exit(1, "", 2) == [Start(2, "big")]


def test_an_idle_model_makes_room_and_the_new_one_waits_for_its_exit() -> None:
    s = new()
    loaded(s, A)
    assert s.on_request(1, B, 1) == [Stop(1, "evicted")]
    assert s.on_exit(1, "", 2) == [Start(2, "b")]
    assert s.on_loaded(2, 3) == [Grant(1, 2)]


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    s = new(budget=10)
    for number, key in enumerate("xyz"):
        loaded(s, Need(key, 3, 1), number)
    s.on_release(5, 4)
    s.on_request(6, Need("x", 3, 1), 5)
    s.on_release(6, 5)  # x was used last
    assert s.on_request(7, Need("new", 3, 1), 6) == [Stop(2, "evicted")]


def test_what_is_asked_for_often_or_loads_slowly_stays_and_the_view_says_why() -> None:
    s = new(budget=6 << 20)
    often, seldom = Need("often", 3 << 20, 1), Need("seldom", 3 << 20, 1)
    (start,) = s.on_request(1, often, 0)
    assert isinstance(start, Start)
    s.on_loaded(start.runner, 2)
    s.on_release(1, 2)
    for ticket in range(2, 6):
        s.on_request(ticket, often, 3)
        s.on_release(ticket, 3)
    (start,) = s.on_request(10, seldom, 4)
    assert isinstance(start, Start)
    s.on_loaded(start.runner, 5)
    s.on_release(10, 6)  # used last, but once, and loaded in half the time
    assert s.on_request(11, Need("new", 3 << 20, 1), 7) == [Stop(start.runner, "evicted")]
    s.on_exit(start.runner, "", 8)
    (view,) = [r for r in s.runners() if r.key == "new"]
    assert view.made_room == ("seldom: 3 MiB, loads in 1.00 s, asked 1.0 times lately",)


def test_models_of_a_group_exclude_each_other_with_memory_to_spare() -> None:
    group = Group("big", 1)
    a, b = (Need(key, 1, 1, groups=(group,)) for key in "ab")
    s = new(patience=2)
    loaded(s, a)
    loaded(s, SMALL)
    assert s.on_request(1, b, 1) == [Stop(1, "evicted")]
    assert s.on_exit(1, "", 2) == [Start(3, "b")]
    s.on_loaded(3, 3)
    assert s.on_request(2, a, 4) == [], "b is in use"
    assert s.on_tick(6) == []
    assert s.on_release(1, 7) == [Stop(3, "evicted")], "it took nothing new after the patience"
    assert s.on_exit(3, "", 8) == [Start(4, "a")]


def test_a_pinned_model_shuts_the_others_of_its_group_out() -> None:
    group = Group("big", 1)
    s = new()
    s.on_pin(Need("p", 1, 1, pinned=True, groups=(group,)), 0)
    s.on_loaded(1, 1)
    (refused,) = s.on_request(1, Need("q", 1, 1, groups=(group,)), 2)
    assert isinstance(refused, Refuse)
    assert refused.why == "too_big"
    assert "`big`" in refused.message
    assert "p" in refused.message
    same_model = Need("embed p", 1, 1, model="p", groups=(group,))
    assert s.on_request(2, same_model, 2) == [Start(2, "embed p")]


def test_a_measured_runner_frees_what_it_does_not_take_and_never_asks_for_more() -> None:
    s = new(budget=10)
    loaded(s, A)
    assert s.on_measured(1, 99, 1) == []
    assert [r.bytes for r in s.runners()] == [6]
    s.on_request(1, A, 1)
    assert s.on_request(2, B, 1) == [], "6 and 6 are more than 10"
    assert s.on_measured(1, 4, 2) == [Start(2, "b")]
    assert s.on_measured(7, 4, 2) == [], "one that is gone already"


def test_a_model_in_use_is_not_evicted_but_takes_nothing_new_after_a_while() -> None:
    s = new(patience=2)
    loaded(s, A)
    assert s.on_request(1, A, 0) == [Grant(1, 1)]
    assert s.on_request(2, B, 1) == []
    assert s.on_request(3, A, 2) == [Grant(3, 1)], "within the patience it goes on"
    assert s.next_event(2) == 3
    assert s.on_tick(3) == []
    assert s.on_request(4, A, 4) == [], "now it is draining"
    assert s.on_release(1, 5) == []
    assert s.on_release(3, 6) == [Stop(1, "evicted")]
    assert s.on_exit(1, "", 7) == [Start(2, "b")]
    # The one that waits for `a` gets its turn: `b` is in use, so it drains after the patience.
    assert s.on_loaded(2, 8) == [Grant(2, 2)]
    assert s.on_release(2, 9) == [Stop(2, "evicted")]
    assert s.on_exit(2, "", 10) == [Start(3, "a")]


def test_a_pinned_model_is_neither_evicted_nor_unloaded() -> None:
    s = new(keep_alive=10)
    pinned = Need("p", 6, 1, pinned=True)
    assert s.on_pin(pinned, 0) == [Start(1, "p")]
    s.on_loaded(1, 1)
    assert s.on_tick(1000) == []
    (refused,) = s.on_request(1, A, 1000)
    assert isinstance(refused, Refuse)
    assert "pinned" in refused.message
    assert s.on_exit(1, "it died", 1001) == [Start(2, "p")], "a pinned model comes back by itself"


def test_a_stopped_pinned_model_stays_away_until_it_is_asked_for() -> None:
    s = new()
    pinned = Need("p", 6, 1, pinned=True)
    s.on_pin(pinned, 0)
    s.on_loaded(1, 1)
    assert s.on_stop("p", 2) == [Stop(1, "stopped")]
    assert s.on_exit(1, "", 3) == []
    assert s.on_tick(100) == []
    assert s.on_request(1, pinned, 101) == [Start(2, "p")]


def test_keep_alive_counts_from_the_last_use() -> None:
    s = new(keep_alive=10)
    loaded(s, A)
    s.on_request(1, A, 5)
    assert s.on_tick(12) == [], "in use"
    s.on_release(1, 13)
    assert s.next_event(13) == 23
    assert s.on_tick(22.9) == []
    assert s.on_tick(23) == [Stop(1, "idle")]


def test_a_model_may_be_kept_for_another_time_than_usual() -> None:
    s = new(keep_alive=10)
    runner = loaded(s, A)
    s.on_keep("a", 100, 1)
    assert s.next_event(1) == 100
    assert s.on_tick(99) == []
    s.on_keep("a", inf, 99)
    assert s.next_event(99) is None
    s.on_keep("a", None, 99)
    assert s.on_tick(99) == [Stop(runner, "idle")]
    s.on_exit(runner, "", 100)
    runner = loaded(s, B, 100)
    assert s.on_keep("b", 0, 101) == [Stop(runner, "idle")]


def test_keep_alive_zero_unloads_at_once() -> None:
    s = new(keep_alive=0)
    s.on_request(1, A, 0)
    assert s.on_loaded(1, 1) == [Grant(1, 1)]
    assert s.on_release(1, 2) == [Stop(1, "idle")]


def test_a_failed_load_tells_everybody_who_waits() -> None:
    s = new()
    s.on_request(1, A, 0)
    s.on_request(2, A, 0)
    out = s.on_load_failed(1, "bad magic", 1)
    assert [(e.ticket, e.why, e.message) for e in out if isinstance(e, Refuse)] == [
        (1, "load_failed", "bad magic"),
        (2, "load_failed", "bad magic"),
    ]


def test_crashes_restart_with_back_off_and_then_the_model_rests() -> None:
    s = new(backoff=1, crashes=3, crash_window=60)
    s.on_request(1, A, 0)
    s.on_loaded(1, 0)
    s.on_request(2, A, 0)
    s.on_request(3, A, 0)
    assert s.on_exit(1, "signal 11", 1) == [Start(2, "a")], "the first restart is at once"
    assert s.on_release(1, 1) == [], "a lease of the dead one ends quietly"
    assert s.on_loaded(2, 2) == [Grant(3, 2)]
    s.on_request(4, A, 2)
    s.on_request(5, A, 2)
    assert s.on_exit(2, "signal 11", 3) == [], "the second waits"
    assert s.next_event(3) == 4
    assert s.on_tick(4) == [Start(3, "a")]
    s.on_loaded(3, 5)
    out = s.on_exit(3, "signal 11", 6)
    assert out == [], "all who waited were granted before"
    (refused,) = s.on_request(6, A, 7)
    assert isinstance(refused, Refuse)
    assert refused.why == "parked"
    assert "signal 11" in refused.message
    assert refused.retry_after == 59
    assert s.on_request(7, A, 67) == [Start(4, "a")], "it is tried again after the rest"


def test_waiters_time_out_in_order() -> None:
    s = new(queue_timeout=10)
    s.on_request(1, A, 0)
    s.on_request(2, A, 5)
    (refused,) = s.on_tick(10)
    assert isinstance(refused, Refuse)
    assert (refused.ticket, refused.why) == (1, "timeout")
    assert s.on_loaded(1, 11) == [Grant(2, 1)]


def test_who_cancels_leaves_the_queue() -> None:
    s = new()
    loaded(s, SMALL)
    s.on_request(1, SMALL, 0)
    s.on_request(2, SMALL, 0)
    s.on_request(3, SMALL, 0)
    assert s.on_cancel(2, 1) == []
    assert s.on_cancel(1, 1) == [Grant(3, 1)], "one who holds a slot frees it"


def test_stopping_a_busy_model_lets_it_finish() -> None:
    s = new()
    loaded(s, A)
    s.on_request(1, A, 0)
    assert s.on_stop("a", 1) == []
    assert s.on_release(1, 2) == [Stop(1, "stopped")]


def test_stopping_a_loading_model() -> None:
    s = new()
    s.on_pin(A, 0)
    s.on_request(1, A, 0)
    s.on_cancel(1, 0)
    assert s.on_stop("a", 1) == [Stop(1, "stopped")]
    assert s.on_load_failed(1, "killed", 2) == []


def test_a_replacement_loads_beside_and_takes_over() -> None:
    s = new(budget=12)
    loaded(s, A)
    s.on_request(1, A, 0)
    assert s.on_replan("a", 1) == [Start(2, "a")]
    assert s.on_request(2, A, 1) == [Grant(2, 1)], "the old one serves while the new one loads"
    assert s.on_loaded(2, 2) == []
    assert s.on_request(3, A, 3) == [Grant(3, 2)]
    assert s.on_release(1, 4) == []
    assert s.on_release(2, 4) == [Stop(1, "replaced")]


def test_no_replacement_without_room() -> None:
    s = new(budget=11)
    loaded(s, A)
    assert s.on_replan("a", 1) == []


def test_a_failed_replacement_leaves_the_old_one_alone() -> None:
    s = new(budget=12)
    loaded(s, A)
    s.on_replan("a", 1)
    assert s.on_load_failed(2, "no", 2) == []
    assert s.on_request(1, A, 3) == [Grant(1, 1)]


def test_closing_refuses_and_stops_everything() -> None:
    s = new()
    loaded(s, A)
    s.on_request(1, A, 0)
    s.on_request(2, B, 0)
    out: list[Effect] = s.on_close(1)
    assert Stop(1, "closing") in out
    assert [e.ticket for e in out if isinstance(e, Refuse)] == [2]
    (refused,) = s.on_request(3, A, 2)
    assert isinstance(refused, Refuse)
    assert refused.why == "closing"
    assert s.on_exit(1, "", 3) == []
