"""An upstream's event stream as deltas: which events count, and when it has ended cleanly. Pure.

Knows: the rules about the end of a stream and about choices' finishes. Does not know: dialects
(`Events`, `Framing`), sockets, clocks, targets.

The rules (scenarios S08 to S11 of the failover catalogue):
1. The dialect's mark of the end (OpenAI's `[DONE]`) after every begun choice had a finish: clean.
2. The end of the bytes after all `n` choices had a finish, without the mark: clean.
3. Any other end: `StreamBroken`. A truncated answer is never passed off as a whole one.
4. One or two events that are not JSON are skipped, a third fails the stream. A skipped event never
   counts as an end, so rule 3 still holds.
"""

from __future__ import annotations

from collections.abc import Callable

from llm_runner_router.errors import BadResponse, RunnerError, StreamBroken
from llm_runner_router.types import Delta

from .dialects.base import Events, Framing

MAX_MALFORMED = 2


class StreamReader:
    """Feed it the bytes of a stream; it gives deltas and knows how the stream stands.

    Args:
        events: reads the payloads; serves this stream alone.
        framing: cuts the bytes into payloads; serves this stream alone.
        choices: how many the request asked for.
        redact: takes secrets out of a payload before an error quotes it.
    """

    __slots__ = (
        "_begun",
        "_choices",
        "_ended",
        "_events",
        "_finished",
        "_framing",
        "_malformed",
        "_redact",
        "done",
        "failure",
    )

    def __init__(
        self,
        events: Events,
        framing: Framing,
        choices: int,
        redact: Callable[[bytes], bytes],
    ) -> None:
        self._framing = framing
        self._events = events
        self._choices = choices
        self._redact = redact
        self._begun: set[int] = {0}
        self._finished: set[int] = set()
        self._malformed = 0
        self._ended = False
        self.done = False
        """The end was marked, or the stream failed: nothing more is to be read."""
        self.failure: RunnerError | None = None
        """To be raised once the deltas before it are out."""

    def feed(self, chunk: bytes) -> list[Delta]:
        """The deltas of the events that `chunk` completes; failures go to `failure`."""
        deltas: list[Delta] = []
        try:
            for payload in self._framing.feed(chunk):
                self._take(payload, deltas)
                if self.done:
                    break
        except RunnerError as exc:
            self._fail(exc)
        return deltas

    @property
    def finished(self) -> bool:
        """Every choice asked for had its finish; only usage and the end may still come."""
        return len(self._finished) >= self._choices and self._begun <= self._finished

    def end(self, cause: RunnerError | None = None) -> list[Delta]:
        """The bytes are over, by `cause` if they broke off; judges the end by the rules above."""
        deltas: list[Delta] = []
        if self._ended:
            return deltas
        self._ended = True
        if not self.done and cause is None:
            try:
                for payload in self._framing.end():
                    self._take(payload, deltas)
            except RunnerError as exc:
                self._fail(exc)
        if self.failure is None:
            clean = bool(self._finished) and self._begun <= self._finished
            if not clean or not (self.done or self.finished):
                self._fail(cause or StreamBroken("the stream ended without a finish reason"))
        self.done = True
        return deltas

    def _take(self, payload: bytes, deltas: list[Delta]) -> None:
        found: tuple[Delta, ...] | None
        try:
            found = self._events.feed(payload)
        except RunnerError:
            found = None
        if found is None:
            found = self._again(payload)
        if self._events.done:
            self.done = True
        for delta in found:
            if delta.finish is not None:
                self._begun.add(delta.index)
                self._finished.add(delta.index)
            elif delta.index:
                self._begun.add(delta.index)
        deltas += found

    def _again(self, payload: bytes) -> tuple[Delta, ...]:
        """Parse a bad event a second time, redacted, to raise or to skip it.

        Not inside the first one's handler: its error may quote a secret and must not stay in the
        context of this one.
        """
        try:
            return self._events.feed(self._redact(payload))
        except BadResponse:
            self._malformed += 1
            if self._malformed > MAX_MALFORMED:
                raise
            return ()

    def _fail(self, error: RunnerError) -> None:
        self.failure = error
        self.done = True
