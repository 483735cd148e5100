"""Which loaded models make room for another. Pure.

Knows: sizes, what a model costs to load again, how often it was asked for lately, pins, groups.
Does not know: processes, queues, clocks.

What goes is what costs least to have gone: seconds of loading times requests to come, for the bytes
that become free. Least recently used is what remains where nothing else differs. Choosing the
cheapest sufficient set is a knapsack problem; the rule below is never worse than twice the best
(J. Csirik, J. Frenk, M. Labbé, S. Zhang: Heuristics for the 0-1 min-knapsack problem, Acta
Cybernetica 10, 1991), and equal to it in nearly all cases (`tests/engine/test_evict.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

HALF_LIFE = 600.0
"""Seconds after which a request counts half as a sign that more will come."""


class Resident(Struct, frozen=True):
    """A loaded model as eviction sees it."""

    runner: int
    bytes: int
    last_used: float
    active: int
    """Requests it is answering."""
    pinned: bool = False
    reload: float = 0.0
    """Seconds it took to load."""
    expected: float = 0.0
    """Requests it had lately, older ones counting less: what is to be expected of the future."""

    @property
    def cost(self) -> float:
        """Seconds of loading that are to be expected if it goes."""
        return self.reload * self.expected


class Crowd(Struct, frozen=True):
    """A group that has more models loaded than may be at once."""

    models: tuple[tuple[int, ...], ...]
    """The runners of each model that is loaded."""
    excess: int
    """How many of the models must go."""


class Uses(Struct, frozen=True):
    """Requests for a model, as a number that halves every `HALF_LIFE` seconds."""

    count: float = 0.0
    at: float = 0.0

    def lately(self, now: float) -> float:
        """The number now."""
        return self.count * math.exp2(-max(0.0, now - self.at) / HALF_LIFE)

    def another(self, now: float) -> Uses:
        """With one more request."""
        return Uses(self.lately(now) + 1.0, now)


def make_room(
    missing: int, residents: Sequence[Resident], crowds: Sequence[Crowd] = ()
) -> tuple[int, ...]:
    """Runners to stop so that `missing` bytes become free and no group is crowded.

    Only idle runners without a pin are taken, and none at all if they are not enough: a model is
    not unloaded for nothing.
    """
    able = {r.runner: r for r in residents if r.active == 0 and not r.pinned}
    chosen: dict[int, Resident] = {}
    for crowd in crowds:
        left = [m for m in crowd.models if not all(r in chosen for r in m)]
        excess = crowd.excess - (len(crowd.models) - len(left))
        free = [m for m in left if all(r in able for r in m)]
        if len(free) < excess:
            return ()
        free.sort(key=lambda m: min(_order(able[r]) for r in m))
        for model in free[: max(0, excess)]:
            chosen |= {r: able[r] for r in model}
    missing -= sum(r.bytes for r in chosen.values())
    rest = [r for r in able.values() if r.runner not in chosen]
    more = victims(missing, rest)
    if missing > 0 and not more:
        return ()
    return (*chosen, *more)


def victims(missing: int, residents: Sequence[Resident]) -> tuple[int, ...]:
    """The cheapest idle runners without a pin that free `missing` bytes; none if they cannot.

    Going through them by cost per byte, whoever would be enough together with the cheaper ones
    before it closes one possible set and is passed over; the cheapest set is taken, without those
    that turn out not to be needed.
    """
    if missing <= 0:
        return ()
    idle = [r for r in residents if r.active == 0 and not r.pinned]
    best: list[Resident] = []
    before: list[Resident] = []
    freed = 0
    for resident in sorted(idle, key=_order):
        if freed + resident.bytes < missing:
            before.append(resident)
            freed += resident.bytes
            continue
        found = _needed([*before, resident], missing)
        if not best or _price(found) < _price(best):
            best = found
    return tuple(r.runner for r in best)


def _needed(chosen: list[Resident], missing: int) -> list[Resident]:
    """Without those, dearest first, that the others make up for."""
    freed = sum(r.bytes for r in chosen)
    kept = list(chosen)
    for resident in sorted(chosen, key=lambda r: (r.cost, r.last_used), reverse=True):
        if freed - resident.bytes >= missing:
            freed -= resident.bytes
            kept.remove(resident)
    return kept


def _price(chosen: list[Resident]) -> tuple[float, float]:
    """What a set costs; among equals the one whose latest use is longest ago."""
    return sum(r.cost for r in chosen), max(r.last_used for r in chosen)


def _order(resident: Resident) -> tuple[float, float, int]:
    return resident.cost / max(1, resident.bytes), resident.last_used, resident.runner
