"""Bedrock's dialect as an upstream speaks it: frames, bodies and errors in. Pure.

Knows: the JSON of the Converse API, the events of its stream. Does not know: requests
(`bedrock_request.py`), how frames are cut (`eventstream.py`), keys, signatures.

Blocks that have no name here (tools run by the service, pictures made by the model) pass as they
are to clients of the same dialect, and are not seen by others.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadResponse, RunnerError
from llm_runner_router.eventstream import MEDIA_TYPE, FrameSplitter, read
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

from .base import Dialect, Header, Quirks, WireRequest, number
from .bedrock_errors import named_error, parse_error
from .bedrock_request import CONVERSE, build_count, build_request

_FINISH: dict[str, Finish] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
    "malformed_model_output": "error",
    "malformed_tool_use": "error",
}
_NONE = Raw(b"")
MAX_BLOCKS = 4096
"""Blocks of one answer; each costs memory while a stream is read."""


class _ToolUse(Struct, rename="camel", gc=False):
    tool_use_id: str | None = None
    name: str | None = None
    input: Raw = _NONE
    type: str | None = None


class _Thought(Struct, gc=False):
    text: str = ""
    signature: str | None = None


class _Reasoning(Struct, rename="camel", gc=False):
    """`reasoningContent`: of a block the first and the last, of an event the others."""

    reasoning_text: _Thought | None = None
    text: str | None = None
    signature: str | None = None
    redacted_content: str | None = None


class _Text(Struct, gc=False):
    text: str | None = None


class _Cited(Struct, gc=False):
    content: list[_Text] | None = None
    citations: list[Raw] | None = None


class _Block(Struct, rename="camel", gc=False):
    text: str | None = None
    tool_use: _ToolUse | None = None
    reasoning_content: _Reasoning | None = None
    citations_content: _Cited | None = None


class _Start(Struct, rename="camel", gc=False):
    tool_use: _ToolUse | None = None


class _InputPiece(Struct, gc=False):
    input: str = ""


class _Piece(Struct, rename="camel", gc=False):
    text: str | None = None
    tool_use: _InputPiece | None = None
    reasoning_content: _Reasoning | None = None
    citation: Raw = _NONE


class _Usage(Struct, rename="camel", gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_write_input_tokens: int | None = None


class _More(Struct, gc=False):
    """`additionalModelResponseFields`, as far as they are asked for here."""

    stop_sequence: str | None = None


class _Event(Struct, rename="camel", gc=False):
    role: str | None = None
    content_block_index: int = 0
    start: _Start | None = None
    delta: _Piece | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    additional_model_response_fields: Raw = _NONE


class _Message(Struct, gc=False):
    content: list[_Block]
    role: str | None = None


class _Output(Struct, gc=False):
    message: _Message | None = None


class _Body(Struct, rename="camel", gc=False):
    output: _Output | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    additional_model_response_fields: Raw = _NONE


_event = msgspec.json.Decoder(_Event).decode
_body = msgspec.json.Decoder(_Body).decode
_more = msgspec.json.Decoder(_More).decode


class Bedrock(Dialect):
    """See `Dialect`; the Converse API."""

    name = "bedrock"
    accept = MEDIA_TYPE

    def build(self, request: Request, model: str, quirks: Quirks, receipt: Receipt) -> WireRequest:
        """See `build_request`."""
        return build_request(request, model, quirks, receipt)

    def events(self, wire: WireRequest) -> BedrockEvents:
        """See `Dialect`."""
        return BedrockEvents()

    def framing(self) -> FrameSplitter:
        """Binary frames with checksums."""
        return FrameSplitter()

    def parse_body(self, body: bytes, wire: WireRequest) -> tuple[Delta, ...]:
        """See `parse_body`."""
        return parse_body(body)

    def build_count(self, request: TokenizeRequest, model: str, receipt: Receipt) -> WireRequest:
        """See `build_count`."""
        return build_count(request, model, receipt)

    def parse_count(self, body: bytes) -> int:
        """See `Dialect`."""
        return number(body, "inputTokens")

    def parse_error(self, status: int, header: Header, body: bytes, *, now: float) -> RunnerError:
        """See `bedrock_errors.parse_error`."""
        return parse_error(status, header, body, now=now)


class BedrockEvents:
    """See `Events`; a payload is a whole frame. `metadata` comes last and ends a stream."""

    __slots__ = ("_calls", "_finished", "done")

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}
        self._finished = False
        self.done = False

    def feed(self, payload: bytes) -> tuple[Delta, ...]:
        """The delta of one frame."""
        frame = read(payload)
        told = frame.headers
        kind = told.get(":message-type", "event")
        if kind == "exception":
            raise named_error(told.get(":exception-type", ""), frame.payload)
        if kind == "error":
            message = {"message": told.get(":error-message", "")}
            raise named_error(told.get(":error-code", ""), msgspec.json.encode(message))
        try:
            event = _event(frame.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise BadResponse(f"not an event: {exc}") from None
        return (self._delta(told.get(":event-type", ""), event, Wire(CONVERSE, "event", payload)),)

    def _delta(self, kind: str, event: _Event, wire: Wire) -> Delta:
        if kind == "contentBlockDelta" and event.delta is not None:
            return self._piece(event.content_block_index, event.delta, wire)
        if kind == "contentBlockStart" and event.start is not None:
            return self._start(event.content_block_index, event.start.tool_use, wire)
        if kind == "messageStart":
            return Delta(role="assistant", wire=wire)
        if kind == "messageStop":
            if event.stop_reason is None:
                raise BadResponse("the end of a message without a reason")
            self._finished = True
            finish = _finish(event.stop_reason)
            stopped = _stopped(event.additional_model_response_fields)
            return Delta(finish=finish, stopped_by=stopped, wire=wire)
        if kind == "metadata":
            self.done = self._finished
            usage = None if event.usage is None else _counted(event.usage)
            return Delta(usage=usage, wire=wire)
        # Kinds that are not known here are for clients that know them: more may come any day.
        return Delta(wire=wire)

    def _start(self, index: int, use: _ToolUse | None, wire: Wire) -> Delta:
        if not 0 <= index < MAX_BLOCKS:
            raise BadResponse(f"a block with the index {index}")
        if use is None or use.type is not None:  # nothing that the client is to do
            return Delta(wire=wire)
        place = self._calls.setdefault(index, len(self._calls))
        return Delta(tool_calls=(ToolCallDelta(place, use.tool_use_id, use.name),), wire=wire)

    def _piece(self, index: int, piece: _Piece, wire: Wire) -> Delta:
        if piece.text is not None:
            return Delta(text=piece.text, wire=wire)
        if piece.tool_use is not None:
            place = self._calls.get(index)
            if place is None:  # the input of a tool that the service runs
                return Delta(wire=wire)
            call = ToolCallDelta(place, None, None, piece.tool_use.input)
            return Delta(tool_calls=(call,), wire=wire)
        thought = piece.reasoning_content or _Reasoning()
        return Delta(
            reasoning=thought.text or "",
            signature=thought.signature or "",
            redacted=thought.redacted_content or "",
            citations=() if piece.citation is _NONE else (piece.citation.copy(),),
            wire=wire,
        )


def parse_body(body: bytes) -> tuple[Delta, ...]:
    """The deltas of a whole answer, block by block; the first carries the body as `Wire`.

    Raises:
        BadResponse: not JSON, or no message.
    """
    try:
        told = _body(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadResponse(f"not a message: {exc}") from None
    if told.output is None or told.output.message is None:
        raise BadResponse("the answer has no message")
    deltas = [Delta(role="assistant", wire=Wire(CONVERSE, "body", body))]
    calls = 0
    for block in told.output.message.content:
        use = block.tool_use
        if use is not None and use.type is None:
            given = "{}" if use.input is _NONE else bytes(use.input).decode()
            call = ToolCallDelta(calls, use.tool_use_id, use.name, given)
            calls += 1
            deltas.append(Delta(tool_calls=(call,)))
        else:
            deltas.append(_block(block))
    # A whole body is over, whether or not it says why.
    finish = _finish(told.stop_reason) or ("tool_calls" if calls else "stop")
    usage = None if told.usage is None else _counted(told.usage)
    stopped = _stopped(told.additional_model_response_fields)
    deltas.append(Delta(finish=finish, stopped_by=stopped, usage=usage))
    return tuple(deltas)


def _block(block: _Block) -> Delta:
    thought = block.reasoning_content or _Reasoning()
    inner = thought.reasoning_text or _Thought()
    cited = block.citations_content or _Cited()
    return Delta(
        text=block.text or "".join(one.text or "" for one in cited.content or ()),
        reasoning=inner.text,
        signature=inner.signature or "",
        redacted=thought.redacted_content or "",
        citations=tuple(one.copy() for one in cited.citations or ()),
    )


def _finish(reason: str | None) -> Finish | None:
    return None if reason is None else _FINISH.get(reason, "stop")


def _stopped(fields: Raw) -> str | None:
    """The sequence that ended the answer, where the model tells it."""
    if fields is _NONE:
        return None
    try:
        return _more(fields).stop_sequence
    except msgspec.ValidationError:
        return None


def _counted(told: _Usage) -> Usage:
    """The input of Converse is what no cache had part in; ours is the whole prompt."""
    read = max(told.cache_read_input_tokens or 0, 0)
    written = max(told.cache_write_input_tokens or 0, 0)
    return Usage(
        prompt_tokens=max(told.input_tokens or 0, 0) + read + written,
        completion_tokens=max(told.output_tokens or 0, 0),
        cached_tokens=read,
        cache_write_tokens=written,
    )
