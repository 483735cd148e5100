"""OpenAI's Responses API as an upstream speaks it: events and bodies in. Pure.

Knows: response objects, their items, the events of a stream. Does not know: requests
(`responses_request.py`), sockets, SSE framing, keys.

Items of tools that run on the provider's side pass as they are to clients of the same dialect, and
are not seen by others.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadResponse, RunnerError
from llm_runner_router.fidelity import Receipt
from llm_runner_router.types import (
    OPENAI,
    Delta,
    Embeddings,
    EmbedRequest,
    Finish,
    Request,
    ToolCallDelta,
    Usage,
    Wire,
)

from .base import Dialect, Header, Quirks, WireRequest
from .openai import parse_embed
from .openai_errors import parse_error, parse_event_error
from .openai_request import build_embed
from .responses_request import RESPONSES, build_request

MAX_ITEMS = 4096
"""Items of one answer; each costs memory while a stream is read."""
_NONE = Raw(b"")


class _Part(Struct, gc=False):
    type: str = ""
    text: str | None = None
    refusal: str | None = None
    annotations: list[Raw] | None = None
    logprobs: list[Raw] | None = None


class _Item(Struct, gc=False):
    type: str = ""
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    content: list[_Part] | None = None
    summary: list[_Part] | None = None
    encrypted_content: str | None = None


class _Details(Struct, gc=False):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_tokens: int | None = None


class _Usage(Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Reason(Struct, gc=False):
    reason: str | None = None


class _Response(Struct, gc=False):
    output: list[_Item] | None = None
    status: str | None = None
    error: Any = None
    incomplete_details: _Reason | None = None
    usage: _Usage | None = None


class _Event(Struct, gc=False):
    type: str = ""
    delta: str | None = None
    output_index: int = 0
    content_index: int = 0
    summary_index: int = 0
    item: _Item | None = None
    response: _Response | None = None
    annotation: Raw = _NONE
    logprobs: list[Raw] | None = None
    error: Any = None
    code: str | None = None
    message: str | None = None
    param: str | None = None


_event = msgspec.json.Decoder(_Event).decode
_response = msgspec.json.Decoder(_Response).decode


class Responses(Dialect):
    """See `Dialect`; the Responses API."""

    name = "responses"

    def build(self, request: Request, model: str, quirks: Quirks, receipt: Receipt) -> WireRequest:
        """See `build_request`."""
        return build_request(request, model, quirks, receipt)

    def events(self, wire: WireRequest) -> ResponsesEvents:
        """See `Dialect`."""
        return ResponsesEvents()

    def parse_body(self, body: bytes, wire: WireRequest) -> tuple[Delta, ...]:
        """See `parse_body`."""
        return parse_body(body)

    def parse_error(self, status: int, header: Header, body: bytes, *, now: float) -> RunnerError:
        """See `openai_errors.parse_error`."""
        return parse_error(status, header, body, now=now)

    def build_embed(self, request: EmbedRequest, model: str) -> WireRequest:
        """Vectors are asked for as ever at OpenAI."""
        return build_embed(request, model)

    def parse_embed(self, body: bytes, count: int) -> Embeddings:
        """See `openai.parse_embed`."""
        return parse_embed(body, count)


class ResponsesEvents:
    """See `Events`; the event with the finished response ends a stream."""

    __slots__ = ("_argued", "_calls", "_raw", "done")

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}
        self._argued: set[int] = set()
        self._raw: set[int] = set()
        """Items whose thoughts came as they are; their summaries would say them twice."""
        self.done = False

    def feed(self, payload: bytes) -> tuple[Delta, ...]:
        """The delta of one event."""
        if payload == b"[DONE]":  # some imitators close every stream with it
            return ()
        try:
            event = _event(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise BadResponse(f"not an event: {exc}") from None
        if not event.type:
            if event.error is not None:
                raise parse_event_error(event.error)
            raise BadResponse("an event without a type")
        return (self._delta(event, Wire(RESPONSES, "event", payload)),)

    def _delta(self, event: _Event, wire: Wire) -> Delta:
        kind = event.type
        piece = event.delta or ""
        if kind == "response.output_text.delta":
            return Delta(text=piece, logprobs=_logprobs(event.logprobs), wire=wire)
        if kind == "response.function_call_arguments.delta":
            return self._argue(event.output_index, piece, wire)
        if kind == "response.output_item.added" and event.item is not None:
            return self._added(event.output_index, event.item, wire)
        if kind == "response.output_item.done" and event.item is not None:
            return self._done(event.output_index, event.item, wire)
        if kind == "response.reasoning_text.delta":
            self._raw.add(event.output_index)
            return Delta(reasoning=piece, wire=wire)
        if kind == "response.reasoning_summary_text.delta":
            return Delta(reasoning="" if event.output_index in self._raw else piece, wire=wire)
        if kind == "response.reasoning_summary_part.added":
            between = "\n\n" if event.summary_index and event.output_index not in self._raw else ""
            return Delta(reasoning=between, wire=wire)
        if kind == "response.refusal.delta":
            return Delta(refusal=piece, wire=wire)
        if kind == "response.output_text.annotation.added" and event.annotation is not _NONE:
            return Delta(citations=(event.annotation.copy(),), wire=wire)
        return self._end(event, wire)

    def _end(self, event: _Event, wire: Wire) -> Delta:
        kind, response = event.type, event.response
        if kind in ("response.completed", "response.incomplete") and response is not None:
            self.done = True
            finish = _finish(response, bool(self._calls))
            return Delta(finish=finish, usage=_counted(response.usage), wire=wire)
        if kind == "response.failed":
            raise parse_event_error((response and response.error) or {"message": "it failed"})
        if kind == "error":
            told = {"message": event.message, "code": event.code, "param": event.param}
            raise parse_event_error(event.error or told)
        if kind == "response.created":
            return Delta(role="assistant", wire=wire)
        # Kinds that are not known here are for clients that know them: more may come any day.
        return Delta(wire=wire)

    def _added(self, index: int, item: _Item, wire: Wire) -> Delta:
        if not 0 <= index < MAX_ITEMS:
            raise BadResponse(f"an item with the index {index}")
        if item.type != "function_call" or index in self._calls:
            return Delta(wire=wire)
        number = self._calls[index] = len(self._calls)
        call = ToolCallDelta(number, item.call_id, item.name, item.arguments or "")
        if item.arguments:
            self._argued.add(index)
        return Delta(tool_calls=(call,), wire=wire)

    def _argue(self, index: int, piece: str, wire: Wire) -> Delta:
        number = self._calls.get(index)
        if number is None or not piece:
            return Delta(wire=wire)
        self._argued.add(index)
        return Delta(tool_calls=(ToolCallDelta(number, None, None, piece),), wire=wire)

    def _done(self, index: int, item: _Item, wire: Wire) -> Delta:
        """What an item had that its pieces had not."""
        if item.type == "function_call":
            if index not in self._calls:
                return self._added(index, item, wire)
            if index not in self._argued and item.arguments:
                return self._argue(index, item.arguments, wire)
        if item.type == "reasoning" and item.encrypted_content:
            return Delta(signature=OPENAI + item.encrypted_content, wire=wire)
        return Delta(wire=wire)


def parse_body(body: bytes) -> tuple[Delta, ...]:
    """The deltas of a whole answer, item by item; the first carries the body as `Wire`.

    Raises:
        BadResponse: not JSON, not a response, or one that is not finished.
        RunnerError: the body is an error although the status said otherwise.
    """
    try:
        response = _response(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadResponse(f"not a response: {exc}") from None
    if response.error is not None:
        raise parse_event_error(response.error)
    if response.output is None:
        raise BadResponse("the answer has no output")
    if response.status not in (None, "completed", "incomplete"):
        raise BadResponse(f"the response is {response.status[:40]!r}, not completed")
    deltas = [Delta(role="assistant", wire=Wire(RESPONSES, "body", body))]
    calls = 0
    for item in response.output:
        if item.type == "function_call":
            call = ToolCallDelta(calls, item.call_id, item.name, item.arguments or "")
            calls += 1
            deltas.append(Delta(tool_calls=(call,)))
        elif item.type == "reasoning":
            shown = item.content or item.summary or ()
            sealed = OPENAI + item.encrypted_content if item.encrypted_content else ""
            text = "\n\n".join(part.text or "" for part in shown)
            deltas.append(Delta(reasoning=text, signature=sealed))
        elif item.type == "message":
            deltas += (_said(part) for part in item.content or ())
    deltas.append(Delta(finish=_finish(response, calls > 0), usage=_counted(response.usage)))
    return tuple(deltas)


def _said(part: _Part) -> Delta:
    return Delta(
        text=part.text or "",
        refusal=part.refusal or "",
        logprobs=_logprobs(part.logprobs),
        citations=tuple(one.copy() for one in part.annotations or ()),
    )


def _logprobs(tokens: list[Raw] | None) -> Raw | None:
    """As chats have them."""
    return Raw(msgspec.json.encode({"content": tokens})) if tokens else None


def _finish(response: _Response, called: bool) -> Finish:
    if response.status == "incomplete":
        reason = response.incomplete_details.reason if response.incomplete_details else None
        return "content_filter" if reason == "content_filter" else "length"
    return "tool_calls" if called else "stop"


def _counted(told: _Usage | None) -> Usage | None:
    if told is None:
        return None
    # A count below zero would be money back, and a part above its whole would be too.
    prompt, completion = max(told.input_tokens or 0, 0), max(told.output_tokens or 0, 0)
    read = told.input_tokens_details or _Details()
    spent = told.output_tokens_details or _Details()
    cached = min(max(read.cached_tokens or 0, 0), prompt)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        reasoning_tokens=min(max(spent.reasoning_tokens or 0, 0), completion),
        cache_write_tokens=min(max(read.cache_write_tokens or 0, 0), prompt - cached),
    )
