"""Live figures of the targets, for the strategies that choose by them.

Knows: how often, how fast and how well each target answered lately. Does not know: requests,
targets, or what follows from a figure. The app owns the one `LiveStats`; the policy `Measure`
tells it what happens, everybody else reads snapshots.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from llm_runner_router import errors

ALPHA = 0.3
"""Weight of the newest sample in the moving averages: about the last six count."""
FAILURES = 3
"""Failures in a row after which a target rests."""
FIRST_REST = 5.0
"""Seconds of the first rest; each further failure doubles it."""
LONGEST_REST = 60.0


class TargetStats(Struct, frozen=True):
    """What is known of one target at one moment. None means: not measured yet."""

    name: str
    in_flight: int = 0
    first_token: float | None = None
    """Moving average of the seconds to the first delta."""
    speed: float | None = None
    """Moving average of decoded tokens per second."""
    failures: int = 0
    """Failures in a row, up to now."""
    last_failure: float | None = None
    """Instant of the clock."""
    requests: int = 0
    """Requests that ended, however they ended."""
    errors: int = 0
    tokens: int = 0


class _Figures:
    """The mutable side of `TargetStats`."""

    __slots__ = (
        "errors", "failures", "first_token", "in_flight", "last_failure", "requests", "speed",
        "tokens",
    )  # fmt: skip

    def __init__(self) -> None:
        self.in_flight = 0
        self.first_token: float | None = None
        self.speed: float | None = None
        self.failures = 0
        self.last_failure: float | None = None
        self.requests = 0
        self.errors = 0
        self.tokens = 0


class LiveStats:
    """Collects what `policy.measure.Measure` tells.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._figures: dict[str, _Figures] = {}

    def begin(self, name: str) -> None:
        """A request to `name` starts."""
        self._of(name).in_flight += 1

    def first(self, name: str, seconds: float) -> None:
        """Its first delta came after `seconds`."""
        figures = self._of(name)
        figures.first_token = _moved(figures.first_token, seconds)

    def end(self, name: str, outcome: str, tokens: int, seconds: float) -> None:
        """It is over: `ok`, `cancelled`, or the class name of the error.

        `tokens` were decoded in `seconds`; zero of either says nothing about speed.
        """
        figures = self._of(name)
        figures.in_flight = max(figures.in_flight - 1, 0)
        figures.requests += 1
        figures.tokens += tokens
        if tokens > 0 and seconds > 0:
            figures.speed = _moved(figures.speed, tokens / seconds)
        if outcome == "ok":
            figures.failures = 0
        elif outcome != "cancelled":
            figures.errors += 1
            if speaks_against(outcome):
                figures.failures += 1
                figures.last_failure = self._clock()

    def snapshot(self, name: str) -> TargetStats:
        """The figures of `name` now; all empty if it was never used."""
        f = self._figures.get(name)
        if f is None:
            return TargetStats(name)
        return TargetStats(
            name=name,
            in_flight=f.in_flight,
            first_token=f.first_token,
            speed=f.speed,
            failures=f.failures,
            last_failure=f.last_failure,
            requests=f.requests,
            errors=f.errors,
            tokens=f.tokens,
        )

    def forget(self, name: str) -> None:
        """Drop the figures of a target that is gone, unless a request is still in flight."""
        figures = self._figures.get(name)
        if figures is not None and not figures.in_flight:
            del self._figures[name]

    def healthy(self, name: str, now: float) -> bool:
        """Whether `name` may be asked: not while it rests after failures in a row."""
        return is_healthy(self.snapshot(name), now)

    def _of(self, name: str) -> _Figures:
        figures = self._figures.get(name)
        if figures is None:
            figures = self._figures[name] = _Figures()
        return figures


def is_healthy(stats: TargetStats, now: float) -> bool:
    """After `FAILURES` in a row a target rests; the rest doubles with each further failure."""
    if stats.failures < FAILURES or stats.last_failure is None:
        return True
    rest = FIRST_REST * 2.0 ** min(stats.failures - FAILURES, 10)
    return now - stats.last_failure >= min(rest, LONGEST_REST)


def speaks_against(outcome: str) -> bool:
    """Whether an error of that class name is the target's fault rather than the request's.

    A full queue is no fault either: it is how a healthy target says "later".
    """
    kind = getattr(errors, outcome, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.RunnerError)):
        return True  # a bug is certainly the target's
    if issubclass(kind, errors.BadRequest | errors.Overloaded):
        return False
    return kind.elsewhere


def _moved(average: float | None, sample: float) -> float:
    return sample if average is None else average + ALPHA * (sample - average)
