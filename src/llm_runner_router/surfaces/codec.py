"""What the codecs of all dialects share: JSON with paths, relayed streams, the ends of answers.

Knows: `Request`s, `Delta`s and what holds for every JSON body. Does not know: any dialect, sockets,
routes.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.deltas import Answer, Collector
from llm_runner_router.errors import BadRequest, StreamBroken
from llm_runner_router.types import Delta, Part, Request, TextPart

from . import veil
from .base import Reply

MAX_STOPS = 16
"""OpenAI takes 4 stop strings; local engines take more and agents use them."""
MAX_FALLBACKS = 8

_GATEWAY_FIELDS = ("fallbacks", "cache", "strict")
"""Fields that are ours: they never go upstream."""

T = TypeVar("T")

_raw_fields = msgspec.json.Decoder(dict[str, Raw])


# ---------------------------------------------------------------- reading


_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")


def parse(decoder: msgspec.json.Decoder[T], body: bytes | Raw, at: str = "") -> T:
    """Decode `body`, or say what is wrong with it and where.

    Args:
        at: the path of `body`, where it is a part of a larger one.

    Raises:
        BadRequest: malformed JSON (with the position), or a value of the wrong type; `param` is
            the path of the field, for example `messages[0].role`.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as exc:
        raise _wrong_type(str(exc), at) from exc
    except msgspec.DecodeError as exc:
        what = str(exc).removeprefix("JSON is malformed: ")
        if "truncated" in what:
            what = f"it ends too early (byte {len(bytes(body))})"
        raise BadRequest(f"the body is not JSON: {what}", code="invalid_json") from exc
    except UnicodeDecodeError as exc:
        raise BadRequest(f"the body is not UTF-8: {exc.reason}", code="invalid_json") from exc
    except RecursionError as exc:
        raise BadRequest("the body is nested too deeply", code="invalid_json") from exc


def _wrong_type(text: str, at: str = "") -> BadRequest:
    match = _PATH.match(text)
    what, path = (match["what"], match["path"]) if match else (text, None)
    param = at + (path or "").removeprefix("$")
    param = param.removeprefix(".")
    missing = _MISSING.search(what)
    if missing:
        param = f"{param}.{missing['field']}" if param else missing["field"]
        return BadRequest(f"{param!r} is missing", param=param, code="missing_required_parameter")
    where = f"{param!r}: " if param else "the body: "
    return BadRequest(where + what[:1].lower() + what[1:], param=param or None, code="invalid_type")


def raw_fields(body: bytes) -> dict[str, Raw]:
    """The top-level fields of `body`, untouched, without those that are the gateway's own."""
    fields = parse(_raw_fields, body)
    for name in _GATEWAY_FIELDS:
        fields.pop(name, None)
    return fields


def extra(fields: dict[str, Raw], known: frozenset[str]) -> dict[str, Raw]:
    """The fields that have no name in `Request`."""
    return {name: value for name, value in fields.items() if name not in known}


def names_of_fallbacks(given: Sequence[str] | None) -> tuple[str, ...]:
    """The names of models in the request field `fallbacks`, which is ours in every dialect."""
    names = tuple(given or ())
    if len(names) > MAX_FALLBACKS or not all(names):
        raise BadRequest(f"'fallbacks' takes up to {MAX_FALLBACKS} model names", param="fallbacks")
    return names


def check_model(model: str) -> None:
    """An empty model name is a mistake of the client, not an unknown model."""
    if not model:
        raise BadRequest("'model' is empty", param="model", code="missing_required_parameter")


def missing(path: str) -> BadRequest:
    """The error for a field that is not there."""
    return BadRequest(f"{path!r} is missing", param=path, code="missing_required_parameter")


def given(value: T | None, path: str, *, empty: bool = False) -> T:
    """`value`, which must be there.

    Raises:
        BadRequest: it is not; names `path`.
    """
    if value is None or (value == "" and not empty):
        raise missing(path)
    return value


def plain(parts: tuple[Part, ...]) -> str | tuple[Part, ...]:
    """A lone text as a string, which every template knows."""
    if len(parts) == 1 and isinstance(parts[0], TextPart) and parts[0].cache_control is None:
        return parts[0].text
    return parts


def limit(name: str, value: int | None, low: int) -> None:
    """`value`, if given, is a sensible number of tokens."""
    if value is not None and not low <= value < 2**31:
        most = 2**31 - 1
        raise BadRequest(f"{name!r} must be {low} to {most}, not {value}", param=name)


# ---------------------------------------------------------------- writing


def note(reply: Reply, delta: Delta) -> None:
    """Keep what the head of an answer wants to know of its deltas."""
    if delta.origin is not None:
        reply.origin = delta.origin
    if delta.usage is not None:
        reply.usage = delta.usage
    if delta.timings is not None:
        reply.timings = delta.timings


def model_name(request: Request, reply: Reply) -> str:
    """Who answered, as far as it is known."""
    return veil.text(reply.origin.model) if reply.origin is not None else request.model


def relayed(delta: Delta, dialect: str) -> bool:
    """Whether the stream that starts with `delta` can be passed on event by event."""
    wire = delta.wire
    return wire is not None and wire.form == "event" and wire.dialect == dialect


class Writer(Protocol):
    """Turns deltas into the events of one stream."""

    def add(self, delta: Delta) -> bytes:
        """The bytes to send for `delta`; may be empty."""
        ...

    def end(self) -> bytes:
        """The bytes that close the stream cleanly, or `StreamBroken`."""
        ...


class _Event(Struct, frozen=True):
    type: str = ""


_event = msgspec.json.Decoder(_Event)


class EventRelay:
    """A `Writer` that passes upstream's named events on untouched.

    For dialects whose events carry their name as `type`. A delta without `wire` belongs to the
    one before.
    """

    def __init__(self) -> None:
        self._finished = False

    def add(self, delta: Delta) -> bytes:
        """The bytes to send for `delta`; may be empty."""
        if delta.finish is not None:
            self._finished = True
        if delta.wire is None:
            return b""
        data = delta.wire.data
        kind = _event.decode(data).type.encode()
        self.passed(kind, data)
        if b"\n" in data:
            data = data.replace(b"\n", b"\ndata: ")
        return b"event: %b\ndata: %b\n\n" % (kind, data)

    def passed(self, kind: bytes, data: bytes) -> None:
        """Called with every event, for a dialect that keeps some."""

    def end(self) -> bytes:
        """Nothing: upstream's own last event has passed.

        Raises:
            StreamBroken: there was no reason to stop.
        """
        check_finished(self._finished)
        return b""


async def events(
    deltas: AsyncIterator[Delta], reply: Reply, choose: Callable[[Delta], Writer]
) -> AsyncIterator[bytes]:
    """Encode a stream with the writer that `choose` picks by the first delta."""
    writer: Writer | None = None
    async for delta in deltas:
        note(reply, delta)
        if writer is None:
            writer = choose(delta)
        data = writer.add(delta)
        if data:
            yield data
    if writer is None:
        raise StreamBroken("the stream ended before the first delta")
    yield writer.end()


async def answer_of(deltas: AsyncIterator[Delta], reply: Reply) -> Answer:
    """Read a whole answer, noting what the head wants to know.

    Raises:
        StreamBroken: a choice has no `finish`.
        RunnerError: whatever the deltas raise.
    """
    collector = Collector()
    async for delta in deltas:
        note(reply, delta)
        collector.add(delta)
    answer = collector.answer()
    check_finished(any(choice.finish for choice in answer.choices))
    return answer


async def whole(
    deltas: AsyncIterator[Delta],
    request: Request,
    reply: Reply,
    dialect: str,
    write: Callable[[Answer, Request, Reply], bytes],
) -> AsyncIterator[bytes]:
    """One body: the upstream's own if it speaks `dialect`, else what `write` makes of the answer.

    Raises:
        StreamBroken: a choice has no `finish`.
        RunnerError: whatever the deltas raise.
    """
    answer = await answer_of(deltas, reply)
    if answer.wire is not None and answer.wire.dialect == dialect:
        yield answer.wire.data
    else:
        yield write(answer, request, reply)


def check_finished(finished: bool) -> None:
    """A stream without a `finish` did not end, it broke; `[DONE]` would be a lie."""
    if not finished:
        raise StreamBroken("the stream ended without a finish reason")
