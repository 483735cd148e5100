"""Which loaded models make room for another. Pure.

Knows: sizes, last use, pins. Does not know: processes, queues.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Resident(Struct, frozen=True):
    """A loaded model as eviction sees it."""

    runner: int
    bytes: int
    last_used: float
    active: int
    """Requests it is answering."""
    pinned: bool = False


def victims(missing: int, residents: Sequence[Resident]) -> tuple[int, ...]:
    """Runners to stop so that `missing` bytes become free, least recently used first.

    Only idle runners without a pin are taken, and none at all if they are not enough: a model is
    not unloaded for nothing. Runners that turn out not to be needed are left out again, so the
    smallest sufficient set along the order of use remains.
    """
    if missing <= 0:
        return ()
    idle = [r for r in residents if r.active == 0 and not r.pinned]
    chosen: list[Resident] = []
    freed = 0
    for resident in sorted(idle, key=lambda r: (r.last_used, r.runner)):
        if freed >= missing:
            break
        chosen.append(resident)
        freed += resident.bytes
    if freed < missing:
        return ()
    for resident in reversed(chosen):  # the most recently used first: it is worth most
        if freed - resident.bytes >= missing:
            freed -= resident.bytes
            chosen.remove(resident)
    return tuple(r.runner for r in chosen)
