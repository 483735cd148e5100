"""What the scheduler remembers of models and runners. Pure; only `scheduler.py` changes it."""

from __future__ import annotations

from collections import deque
from typing import Literal

from msgspec import Struct

from .effects import Left, Need
from .evict import Uses


class WaiterState(Struct):
    """A request that waits for a slot."""

    ticket: int
    since: float
    low: bool = False
    """It comes after all that are not."""


class RunnerState(Struct):
    """A process, from its start to its exit."""

    number: int
    need: Need
    """As it was when it was started."""
    bytes: int
    """What it takes at most, without its engine's code: of loading, later of serving."""
    state: Literal["loading", "ready", "retiring", "stopping"]
    last_used: float
    active: dict[int, float] = {}
    """Tickets it serves, with the instant of the grant."""
    low: int | None = None
    """The one of them that is of low priority."""
    draining: Left = "stopped"
    """Why it retires."""
    since: float = 0.0
    """When it was started."""
    made_room: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The model's name for the scheduler."""
        return self.need.key


class ModelState(Struct):
    """A model that was ever asked for."""

    need: Need
    waiters: deque[WaiterState]
    current: int | None = None
    """The runner that gets requests."""
    coming: int | None = None
    """The runner that loads."""
    failures: list[float] = []
    restarts: int = 0
    not_before: float = 0.0
    parked_until: float = 0.0
    last_error: str = ""
    seconds: float = 1.0
    """Smoothed time a request holds its slot; for `retry_after`."""
    reload: float = 0.0
    """Seconds it took to load, smoothed; 0 before the first time."""
    uses: Uses = Uses()
    gone_for_it: tuple[str, ...] = ()
    """What was evicted for it since it was last started."""
    held: bool = False
    """Stopped on purpose: a pin does not load it again until somebody asks."""
