"""The scheduler's vocabulary: what it is told, what it may do, what it shows.

Plain frozen values; no behaviour. `Start`, `Stop`, `Grant` and `Refuse` are all it can do to the
world.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Why = Literal["overloaded", "timeout", "too_big", "load_failed", "parked", "closing"]
Left = Literal["stopped", "evicted", "idle", "replaced", "closing"]


class Group(Struct, frozen=True):
    """A group of models of which at most `at_once` may be loaded."""

    name: str
    at_once: int = 1


class Need(Struct, frozen=True):
    """What a request needs loaded. `key` says the model and the purpose."""

    key: str
    bytes: int
    """What its process takes at most once it is loaded, without `code`."""
    slots: int
    pinned: bool = False
    model: str = ""
    """The model without the purpose; empty is the key itself."""
    groups: tuple[Group, ...] = ()
    loading: int = 0
    """What it takes for a while when it loads, without `code`, if that is more than `bytes`."""
    engine: str = ""
    """The engine that will run it."""
    code: int = 0
    """What the engine's code takes, once for all of its processes."""

    @property
    def peak(self) -> int:
        """What must be free for it to be loaded, beside the engine's code."""
        return max(self.bytes, self.loading)

    @property
    def name(self) -> str:
        """The model as groups count it."""
        return self.model or self.key


class Limits(Struct, frozen=True):
    """Numbers that bound everything. Seconds and bytes."""

    budget: int
    keep_alive: float = 300.0
    max_queue: int = 64
    queue_timeout: float = 60.0
    patience: float = 2.0
    """How long a request waits for memory before models in use stop taking new requests for it."""
    crash_window: float = 60.0
    """`crashes` failures within this many seconds park a model for as long."""
    crashes: int = 3
    backoff: float = 1.0
    """Seconds before the second restart; the first is at once."""


# ---------------------------------------------------------------- effects


class Start(Struct, frozen=True):
    """Load the model `key` in a new process, to be called `runner`."""

    runner: int
    key: str


class Stop(Struct, frozen=True):
    """End the process of `runner`."""

    runner: int
    why: Left


class Grant(Struct, frozen=True):
    """The request may use `runner` until it is released."""

    ticket: int
    runner: int


class Refuse(Struct, frozen=True):
    """The request will not be served. `retry_after` in seconds, where waiting helps."""

    ticket: int
    why: Why
    message: str
    retry_after: float | None = None


Effect = Start | Stop | Grant | Refuse


# ---------------------------------------------------------------- views


class ModelView(Struct, frozen=True):
    """A model's state, for display only."""

    key: str
    current: int | None
    coming: int | None
    queued: int
    restarts: int
    parked_until: float | None
    last_error: str


class RunnerView(Struct, frozen=True):
    """A runner's state, for display only."""

    number: int
    key: str
    state: str
    active: int
    bytes: int
    expires: float | None
    """Instant at which it is unloaded if nobody asks; None while in use or pinned."""
    made_room: tuple[str, ...] = ()
    """What was evicted for it, and what that was expected to cost."""
