"""Who makes room: cheap to load again, seldom asked, large, idle, not pinned."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

import pytest

from llm_runner_router.engine.evict import (
    HALF_LIFE,
    Crowd,
    Resident,
    Uses,
    make_room,
    victims,
)


def resident(
    runner: int, size: int, reload: float = 0.0, expected: float = 0.0, used: float = 0.0
) -> Resident:
    return Resident(runner, size, used, active=0, reload=reload, expected=expected)


def some(rng: random.Random, most: int = 8) -> list[Resident]:
    return [
        Resident(
            runner=n,
            bytes=rng.randrange(1, 9),
            last_used=rng.random(),
            active=rng.choice((0, 0, 0, 1)),
            pinned=rng.random() < 0.15,
            reload=rng.choice((0.0, 0.1, 1.0, 20.0)),
            expected=rng.random() * 5,
        )
        for n in range(rng.randrange(most))
    ]


def best(missing: int, able: Sequence[Resident]) -> float:
    """The cheapest sufficient set, by trying all."""
    return min(
        sum(r.cost for r in chosen)
        for n in range(1, len(able) + 1)
        for chosen in combinations(able, n)
        if sum(r.bytes for r in chosen) >= missing
    )


def test_victims_are_idle_unpinned_sufficient_and_hardly_dearer_than_the_best() -> None:
    rng = random.Random(3)
    equal = all_of = 0
    for _ in range(3000):
        residents = some(rng)
        missing = rng.randrange(-2, 20)
        chosen = victims(missing, residents)
        taken = [r for r in residents if r.runner in chosen]
        able = [r for r in residents if r.active == 0 and not r.pinned]
        assert all(r in able for r in taken)
        if missing <= 0 or sum(r.bytes for r in able) < missing:
            assert chosen == (), "nobody goes for nothing"
            continue
        freed = sum(r.bytes for r in taken)
        assert freed >= missing
        assert all(freed - r.bytes < missing for r in taken), "one more than needed"
        cost, least = sum(r.cost for r in taken), best(missing, able)
        assert cost <= 2 * least + 1e-9
        all_of += 1
        equal += cost <= least + 1e-9
    assert all_of > 1000
    assert equal / all_of > 0.9


@pytest.mark.parametrize(
    ("missing", "residents", "gone"),
    [
        pytest.param(4, [resident(3, 4, used=3), resident(1, 4, used=1)], (1,), id="equals: old"),
        pytest.param(
            4,
            [resident(1, 4, 9.0, 3.0, used=1), resident(2, 4, 0.1, 3.0, used=2)],
            (2,),
            id="quick to load",
        ),
        pytest.param(
            4,
            [resident(1, 4, 1.0, 9.0, used=1), resident(2, 4, 1.0, 0.5, used=2)],
            (2,),
            id="seldom asked",
        ),
        pytest.param(
            4,
            [resident(1, 4, 1.0, 1.0), resident(2, 9, 1.5, 1.0), resident(3, 1)],
            (1,),
            id="one of the size, not one larger",
        ),
        pytest.param(
            8,
            [resident(1, 4, 1.0, 1.0), resident(2, 4, 1.0, 1.0), resident(3, 9, 1.5, 1.0)],
            (3,),
            id="one large instead of two",
        ),
        pytest.param(
            2,
            [resident(1, 2, 5.0, 5.0), resident(2, 50, 0.1, 0.1)],
            (2,),
            id="large and cheap before small and dear",
        ),
    ],
)
def test_who_goes(missing: int, residents: list[Resident], gone: tuple[int, ...]) -> None:
    assert victims(missing, residents) == gone


def test_requests_count_less_with_time() -> None:
    uses = Uses().another(0.0).another(0.0)
    assert uses.lately(0.0) == 2.0
    assert uses.lately(HALF_LIFE) == 1.0
    assert uses.another(HALF_LIFE).lately(HALF_LIFE) == 2.0
    assert uses.lately(-5.0) == 2.0, "a clock that went back makes nothing of it"


def test_a_crowded_group_loses_its_cheapest_even_where_memory_is_left() -> None:
    residents = [resident(1, 4, 1.0, 5.0), resident(2, 4, 1.0, 1.0), resident(3, 4)]
    assert make_room(0, residents, [Crowd(((1,), (2,)), 1)]) == (2,)
    assert make_room(0, residents, [Crowd(((1,), (2,)), 2)]) == (2, 1)
    assert make_room(6, residents, [Crowd(((1,), (2,)), 1)]) == (2, 3), "its bytes count"


def test_a_crowd_that_cannot_be_thinned_leaves_everybody_alone() -> None:
    busy = Resident(1, 4, 0.0, active=1)
    assert make_room(0, [busy, resident(2, 4)], [Crowd(((1,), (2,)), 2)]) == ()
    assert make_room(99, [resident(2, 4)], [Crowd(((2,),), 1)]) == ()
    assert make_room(0, [resident(2, 4)], [Crowd(((2, 7),), 1)]) == (), "one of it still loads"


def test_two_crowds_may_be_thinned_by_the_same_model() -> None:
    residents = [resident(1, 4), resident(2, 4)]
    crowds = [Crowd(((1,),), 1), Crowd(((1,), (2,)), 1)]
    assert make_room(0, residents, crowds) == (1,)


def test_whatever_the_crowds_the_choice_is_enough_or_empty() -> None:
    rng = random.Random(9)
    chosen_at_all = 0
    for _ in range(3000):
        residents = some(rng, 7)
        able = {r.runner for r in residents if r.active == 0 and not r.pinned}
        crowds = [
            Crowd(tuple((r.runner,) for r in members), rng.randrange(1, len(members) + 1))
            for _ in range(rng.randrange(3))
            if (members := [r for r in residents if rng.random() < 0.5])
        ]
        missing = rng.randrange(-5, 15)
        chosen = make_room(missing, residents, crowds)
        assert len(set(chosen)) == len(chosen)
        assert able.issuperset(chosen)
        if chosen:
            chosen_at_all += 1
            assert sum(r.bytes for r in residents if r.runner in chosen) >= missing
            for crowd in crowds:
                assert sum(m[0] in chosen for m in crowd.models) >= crowd.excess
    assert chosen_at_all > 500
