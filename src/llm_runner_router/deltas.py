"""Tools on streams of deltas: the commit point, collecting, and what an engine says of its speed.

Knows: `Delta`s and async iterators. Does not know: where deltas come from or go to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from msgspec import Raw, Struct

from .errors import StreamBroken
from .types import Delta, Finish, Origin, ToolCall, ToolCallDelta, Usage, Wire


async def prime(deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
    """Wait for the first delta and give the stream back with it in front.

    This is the commit point: until it returns, another target may be tried; afterwards the
    reader must be told of any failure.

    Raises:
        StreamBroken: the stream ended before any delta.
        RunnerError: whatever the target raised before its first delta.
    """
    try:
        first = await anext(deltas)
    except StopAsyncIteration:
        raise StreamBroken("the stream ended before the first delta") from None
    return _Chained(first, deltas)


class _Chained:
    """One delta, then the rest. A class, not a generator: it holds nothing that needs closing."""

    __slots__ = ("_first", "_rest")

    def __init__(self, first: Delta, rest: AsyncIterator[Delta]) -> None:
        self._first: Delta | None = first
        self._rest = rest

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)


class Choice(Struct, frozen=True):
    """One finished choice of an answer."""

    index: int
    text: str
    reasoning: str
    refusal: str
    tool_calls: tuple[ToolCall, ...]
    finish: Finish | None
    logprobs: tuple[Raw, ...] = ()
    signature: str = ""
    redacted: tuple[str, ...] = ()
    citations: tuple[Raw, ...] = ()
    stopped_by: str | None = None


class Answer(Struct, frozen=True):
    """A whole answer: its choices by index, the usage if the target told it, who answered."""

    choices: tuple[Choice, ...]
    usage: Usage | None
    origin: Origin | None
    wire: Wire | None = None
    timings: Raw | None = None

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text if self.choices else ""


class _Growing:
    """A choice while its deltas arrive; pieces are joined once, at the end."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.calls: dict[int, list[ToolCallDelta]] = {}
        self.finish: Finish | None = None
        self.stopped_by: str | None = None
        self.logprobs: list[Raw] = []
        self.signature: list[str] = []
        self.redacted: list[str] = []
        self.citations: list[Raw] = []

    def add(self, delta: Delta) -> None:
        if delta.text:
            self.text.append(delta.text)
        if delta.reasoning:
            self.reasoning.append(delta.reasoning)
        if delta.refusal:
            self.refusal.append(delta.refusal)
        for piece in delta.tool_calls:
            self.calls.setdefault(piece.index, []).append(piece)
        if delta.logprobs is not None:
            self.logprobs.append(delta.logprobs)
        if delta.finish is not None:
            self.finish = delta.finish
            self.stopped_by = delta.stopped_by
        if delta.signature:
            self.signature.append(delta.signature)
        if delta.redacted:
            self.redacted.append(delta.redacted)
        if delta.citations:
            self.citations += delta.citations

    def done(self, index: int) -> Choice:
        calls = tuple(_joined(pieces) for _, pieces in sorted(self.calls.items()))
        return Choice(
            index=index,
            text="".join(self.text),
            reasoning="".join(self.reasoning),
            refusal="".join(self.refusal),
            tool_calls=calls,
            finish=self.finish,
            logprobs=tuple(self.logprobs),
            signature="".join(self.signature),
            redacted=tuple(self.redacted),
            citations=tuple(self.citations),
            stopped_by=self.stopped_by,
        )


def _joined(pieces: list[ToolCallDelta]) -> ToolCall:
    return ToolCall(
        id=next((piece.id for piece in pieces if piece.id), ""),
        name="".join([piece.name for piece in pieces if piece.name]),
        arguments="".join([piece.arguments for piece in pieces]),
        signature=next((piece.signature for piece in pieces if piece.signature), None),
    )


class Collector:
    """Adds deltas up to an `Answer`; `add` as they pass, `answer` at any time."""

    def __init__(self) -> None:
        self._choices: dict[int, _Growing] = {}
        self._usage: Usage | None = None
        self._origin: Origin | None = None
        self._wire: Wire | None = None
        self._timings: Raw | None = None

    def add(self, delta: Delta) -> None:
        """Take one more delta in."""
        if delta.usage is not None:
            self._usage = delta.usage
        if delta.origin is not None:
            self._origin = delta.origin
        if delta.wire is not None and delta.wire.form == "body":
            self._wire = delta.wire
        if delta.timings is not None:
            self._timings = delta.timings
        choice = self._choices.get(delta.index)
        if choice is None:
            choice = self._choices[delta.index] = _Growing()
        choice.add(delta)

    def answer(self) -> Answer:
        """What has arrived so far."""
        return Answer(
            choices=tuple(c.done(i) for i, c in sorted(self._choices.items())),
            usage=self._usage,
            origin=self._origin,
            wire=self._wire,
            timings=self._timings,
        )


class _Timings(Struct, frozen=True):
    predicted_n: int = 0
    predicted_per_second: float = 0.0


_timings = msgspec.json.Decoder(_Timings)


def decode_speed(timings: Raw) -> float | None:
    """Decoded tokens per second, as llama-server itself measured them (`Delta.timings`).

    None for fewer than two tokens, whose time is all prefill, and for what cannot be read.
    """
    try:
        found = _timings.decode(timings)
    except msgspec.DecodeError:
        return None
    return found.predicted_per_second if found.predicted_n > 1 else None


async def collect(deltas: AsyncIterator[Delta]) -> Answer:
    """Read a stream to its end and add it up.

    Raises:
        RunnerError: whatever the stream raises; nothing partial is returned then.
    """
    collector = Collector()
    async for delta in deltas:
        collector.add(delta)
    return collector.answer()
