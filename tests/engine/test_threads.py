"""How many threads, and how they wait: every rule of the plan, and when a plan is replaced."""

from __future__ import annotations

import pytest

from llm_runner_router.config import Engine
from llm_runner_router.engine.devices import Machine
from llm_runner_router.engine.threads import CpuPlan, Retune, plan

BIG = 1 << 30
SMALL = 1 << 20


def machine(
    physical: int = 8, allowed: int = 8, quota: float | None = None, busy: float = 0.0
) -> Machine:
    return Machine(physical, allowed, quota, 1 << 34, 1 << 33, busy)


def test_an_idle_machine_is_used_whole_and_spins() -> None:
    assert plan(BIG, machine(), Engine()) == CpuPlan(8, 8, "spin")


def test_a_tiny_model_decodes_with_one_thread() -> None:
    assert plan(SMALL, machine(), Engine()) == CpuPlan(1, 8, "passive")


@pytest.mark.parametrize(
    ("there", "cores"),
    [
        (machine(physical=4, allowed=8), 4),
        (machine(physical=8, allowed=2), 2),
        (machine(quota=7.65), 7),
        (machine(quota=0.5), 1),
        (machine(quota=3.0, allowed=2), 2),
    ],
)
def test_cores_are_the_least_of_all_limits_and_a_quota_is_rounded_down(
    there: Machine, cores: int
) -> None:
    assert there.cores == cores
    assert plan(BIG, there, Engine()).threads == cores


def test_a_quota_never_spins_for_long() -> None:
    assert plan(BIG, machine(quota=4), Engine()) == CpuPlan(4, 4, "short")


@pytest.mark.parametrize(
    ("busy", "threads", "wait"),
    [
        (0.1, 8, "spin"),
        (0.5, 7, "short"),
        (1.0, 7, "short"),
        (3.9, 4, "short"),
        (8.0, 1, "passive"),
        (20.0, 1, "passive"),
    ],
)
def test_others_work_takes_cores_away(busy: float, threads: int, wait: str) -> None:
    found = plan(BIG, machine(busy=busy), Engine())
    assert (found.threads, found.wait) == (threads, wait)
    assert found.batch_threads == 8, "prompts share the cores; that costs little"


def test_the_configuration_wins() -> None:
    settings = Engine(threads=3, wait_policy="short")
    assert plan(BIG, machine(busy=8), settings) == CpuPlan(3, 3, "short")
    assert plan(SMALL, machine(), settings).threads == 3


def test_the_environment_of_each_way_to_wait() -> None:
    assert CpuPlan(2, 2, "spin").env == {}
    assert CpuPlan(2, 2, "short").env == {"GOMP_SPINCOUNT": "1000"}
    assert CpuPlan(2, 2, "passive").env == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_a_change_counts_once_it_has_lasted() -> None:
    retune = Retune(patience=15, urgency=3)
    now, other, third = CpuPlan(1, 2, "passive"), CpuPlan(2, 2, "spin"), CpuPlan(2, 2, "short")
    assert not retune.observe("m", now, other, 0)
    assert not retune.observe("m", now, other, 14)
    assert retune.observe("m", now, other, 15)
    assert not retune.observe("m", now, third, 16), "another wish starts anew"
    assert not retune.observe("m", now, now, 20), "back to what runs"
    assert not retune.observe("m", now, third, 31)
    assert retune.observe("m", now, third, 46)
    retune.forget("m")
    assert not retune.observe("m", now, third, 47)


def test_leaving_the_spin_is_urgent() -> None:
    retune = Retune(patience=15, urgency=3)
    spin, short = CpuPlan(2, 2, "spin"), CpuPlan(1, 2, "passive")
    assert not retune.observe("m", spin, short, 0)
    assert retune.observe("m", spin, short, 3)
