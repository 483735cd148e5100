"""Anthropic's dialect as an upstream speaks it: events and bodies in. Pure.

Knows: the JSON of the Messages API, its stream events, its errors. Does not know: requests
(`anthropic_request.py`), sockets, SSE framing, keys.

Blocks that have no name here (searches and code run on the provider's side) pass as they are to
clients of the same dialect, and are not seen by others.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadResponse, RunnerError
from llm_runner_router.fidelity import Receipt
from llm_runner_router.types import (
    Delta,
    Finish,
    Request,
    TokenizeRequest,
    ToolCallDelta,
    Usage,
    Wire,
)

from .anthropic_request import MESSAGES, build_count, build_request
from .base import Dialect, Header, Quirks, WireRequest, number
from .openai_errors import parse_error, parse_event_error

_FINISH: dict[str, Finish] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_NONE = Raw(b"")
MAX_BLOCKS = 4096
"""Blocks of one answer; each costs memory while a stream is read."""


class _Block(Struct, gc=False):
    """`content_block` of an event, an item of `content` of a body."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: Raw = _NONE
    citations: list[Raw] | None = None


class _Piece(Struct, gc=False):
    """`delta` of an event."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    citation: Raw = _NONE
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Details(Struct, gc=False):
    thinking_tokens: int | None = None


class _Usage(Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: _Details | None = None


class _Message(Struct, gc=False):
    role: str | None = None
    content: list[_Block] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: _Usage | None = None
    type: str = ""
    error: Any = None


class _Event(Struct, gc=False):
    type: str = ""
    index: int = 0
    delta: _Piece | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: _Usage | None = None
    error: Any = None


_event = msgspec.json.Decoder(_Event).decode
_message = msgspec.json.Decoder(_Message).decode


class Anthropic(Dialect):
    """See `Dialect`; the Messages API."""

    name = "anthropic"

    def build(self, request: Request, model: str, quirks: Quirks, receipt: Receipt) -> WireRequest:
        """See `build_request`."""
        return build_request(request, model, quirks, receipt)

    def events(self, wire: WireRequest) -> AnthropicEvents:
        """See `Dialect`."""
        return AnthropicEvents()

    def parse_body(self, body: bytes, wire: WireRequest) -> tuple[Delta, ...]:
        """See `parse_body`."""
        return parse_body(body)

    def build_count(self, request: TokenizeRequest, model: str, receipt: Receipt) -> WireRequest:
        """See `build_count`."""
        return build_count(request, model, receipt)

    def parse_count(self, body: bytes) -> int:
        """See `Dialect`."""
        return number(body, "input_tokens")

    def parse_error(self, status: int, header: Header, body: bytes, *, now: float) -> RunnerError:
        """Anthropic's errors have the shape and the words that OpenAI's reader knows."""
        return parse_error(status, header, body, now=now)


class AnthropicEvents:
    """See `Events`; `message_stop` ends a stream."""

    __slots__ = ("_calls", "_usage", "done")

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}
        self._usage = _Usage()
        self.done = False

    def feed(self, payload: bytes) -> tuple[Delta, ...]:
        """The delta of one event; `ping` gives none."""
        try:
            event = _event(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise BadResponse(f"not an event: {exc}") from None
        if event.type == "ping":
            return ()
        return (self._delta(event, Wire(MESSAGES, "event", payload)),)

    def _delta(self, event: _Event, wire: Wire) -> Delta:
        kind = event.type
        if kind == "content_block_delta" and event.delta is not None:
            return self._piece(event.index, event.delta, wire)
        if kind == "content_block_start" and event.content_block is not None:
            return self._start(event.index, event.content_block, wire)
        if kind == "message_start" and event.message is not None:
            self._usage = _merged(self._usage, event.message.usage)
            return Delta(role="assistant", wire=wire)
        if kind == "message_delta":
            return self._end(event, wire)
        if kind == "message_stop":
            self.done = True
        elif kind == "error" or event.error is not None:
            raise parse_event_error(event.error or {"message": "an error without words"})
        elif not kind:
            raise BadResponse("an event without a type")
        # Kinds that are not known here are for clients that know them: more may come any day.
        return Delta(wire=wire)

    def _start(self, index: int, block: _Block, wire: Wire) -> Delta:
        if not 0 <= index < MAX_BLOCKS:
            raise BadResponse(f"a block with the index {index}")
        if block.type == "tool_use":
            number = self._calls.setdefault(index, len(self._calls))
            # The input of a block that starts is empty; it comes in pieces.
            call = ToolCallDelta(number, block.id, block.name)
            return Delta(tool_calls=(call,), wire=wire)
        return Delta(
            text=block.text or "",
            reasoning=block.thinking or "",
            redacted=(block.data or "") if block.type == "redacted_thinking" else "",
            wire=wire,
        )

    def _piece(self, index: int, piece: _Piece, wire: Wire) -> Delta:
        if piece.text:
            return Delta(text=piece.text, wire=wire)
        if piece.partial_json is not None:
            number = self._calls.get(index)
            if number is None:  # the input of a tool on the provider's side
                return Delta(wire=wire)
            return Delta(
                tool_calls=(ToolCallDelta(number, None, None, piece.partial_json),), wire=wire
            )
        citations = () if piece.citation is _NONE else (piece.citation.copy(),)
        return Delta(
            reasoning=piece.thinking or "",
            signature=piece.signature or "",
            citations=citations,
            wire=wire,
        )

    def _end(self, event: _Event, wire: Wire) -> Delta:
        self._usage = _merged(self._usage, event.usage)
        piece = event.delta or _Piece()
        return Delta(
            finish=_finish(piece.stop_reason),
            stopped_by=piece.stop_sequence,
            usage=_counted(self._usage),
            wire=wire,
        )


def parse_body(body: bytes) -> tuple[Delta, ...]:
    """The deltas of a whole answer, block by block; the first carries the body as `Wire`.

    Raises:
        BadResponse: not JSON, or not a message.
        RunnerError: the body is an error although the status said otherwise.
    """
    try:
        message = _message(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadResponse(f"not a message: {exc}") from None
    if message.error is not None:
        raise parse_event_error(message.error)
    if message.content is None:
        raise BadResponse("the answer has no content")
    deltas = [Delta(role="assistant", wire=Wire(MESSAGES, "body", body))]
    calls = 0
    for block in message.content:
        if block.type == "tool_use":
            given = "{}" if block.input is _NONE else bytes(block.input).decode()
            call = ToolCallDelta(calls, block.id, block.name, given)
            calls += 1
            deltas.append(Delta(tool_calls=(call,)))
            continue
        deltas.append(
            Delta(
                text=block.text or "",
                reasoning=block.thinking or "",
                signature=block.signature or "",
                redacted=(block.data or "") if block.type == "redacted_thinking" else "",
                citations=tuple(one.copy() for one in block.citations or ()),
            )
        )
    # A whole body is over, whether or not it says why.
    finish = _finish(message.stop_reason) or ("tool_calls" if calls else "stop")
    usage = _counted(message.usage) if message.usage is not None else None
    deltas.append(Delta(finish=finish, stopped_by=message.stop_sequence, usage=usage))
    return tuple(deltas)


def _finish(reason: str | None) -> Finish | None:
    return None if reason is None else _FINISH.get(reason, "stop")


def _merged(old: _Usage, new: _Usage | None) -> _Usage:
    """Later counts replace earlier ones: they are of the whole answer so far."""
    if new is None:
        return old
    return _Usage(
        *(
            getattr(old, name) if getattr(new, name) is None else getattr(new, name)
            for name in _Usage.__struct_fields__
        )
    )


def _counted(told: _Usage) -> Usage:
    """The input of the Messages API is what no cache had part in; ours is the whole prompt."""
    read = max(told.cache_read_input_tokens or 0, 0)
    written = max(told.cache_creation_input_tokens or 0, 0)
    completion = max(told.output_tokens or 0, 0)
    details = told.output_tokens_details
    thought = min(max((details.thinking_tokens if details else None) or 0, 0), completion)
    return Usage(
        prompt_tokens=max(told.input_tokens or 0, 0) + read + written,
        completion_tokens=completion,
        cached_tokens=read,
        reasoning_tokens=thought,
        cache_write_tokens=written,
    )
