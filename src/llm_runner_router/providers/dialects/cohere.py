"""Cohere's v2 API as an upstream speaks it: events and bodies in. Pure.

Knows: the JSON of chats and their streams, vectors, Cohere's errors. Does not know: requests
(`cohere_request.py`), sockets, SSE framing, keys.

What a model says before it calls tools comes as its `tool_plan`; in every other dialect it is the
text before the calls, and so it is here.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    ContentFiltered,
    RunnerError,
    UpstreamError,
    UpstreamTimeout,
)
from llm_runner_router.fidelity import Receipt
from llm_runner_router.types import (
    Delta,
    Embeddings,
    EmbedRequest,
    Finish,
    Mark,
    Request,
    ToolCallDelta,
    Usage,
    Wire,
)

from .base import Dialect, Header, Quirks, WireRequest
from .cohere_request import COHERE, MOST_INPUTS, build_embed, build_request, embed_marks
from .openai_errors import classify, read, retry_after, shorten

_FINISH: dict[str, Finish] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "ERROR_LIMIT": "length",
    "TOOL_CALL": "tool_calls",
    "ERROR_TOXIC": "content_filter",
}
"""With any other reason the model gave up: no answer, and another try may give one."""
MAX_CALLS = 1024
"""Calls of one answer; each costs memory while a stream is read."""
_DENIED = 498
"""The status of a request or an answer with a word that is denied there."""
_CANCELLED = 499
_NONE = Raw(b"")
_UNKNOWN = re.compile(r"unknown field: parameter '([^']{1,200})' is not a valid field")

_OUTPUT = re.compile(r"max tokens must be less than or equal to")
"""Said of an answer that may not be so long; the prompt is not the matter."""


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, gc=False):
    id: str | None = None
    function: _Function | None = None


class _Block(Struct, gc=False):
    text: str | None = None
    thinking: str | None = None


class _Logprob(Struct, gc=False):
    text: str | None = None
    logprobs: list[float] | None = None


class _Message(Struct, gc=False):
    """`message` of a body, and of an event's `delta`, where there is one of each thing."""

    content: _Block | list[_Block] | None = None
    tool_plan: str | None = None
    tool_calls: _Call | list[_Call] | None = None
    citations: Raw = _NONE


class _Counts(Struct, gc=False):
    input_tokens: float | None = None
    output_tokens: float | None = None


class _Usage(Struct, gc=False):
    billed_units: _Counts | None = None
    tokens: _Counts | None = None
    cached_tokens: float | None = None


class _Piece(Struct, gc=False):
    message: _Message | None = None
    finish_reason: str | None = None
    usage: _Usage | None = None
    error: str | None = None


class _Event(Struct, gc=False):
    type: str = ""
    index: int = 0
    delta: _Piece | None = None
    logprobs: _Logprob | None = None
    message: str | None = None


class _Answer(Struct, gc=False):
    message: _Message | str | None = None
    finish_reason: str | None = None
    usage: _Usage | None = None
    logprobs: list[_Logprob] | None = None


_event = msgspec.json.Decoder(_Event).decode
_answer = msgspec.json.Decoder(_Answer).decode
_list = msgspec.json.Decoder(list[Raw]).decode


class Cohere(Dialect):
    """See `Dialect`; version 2 of Cohere's API."""

    name = "cohere"
    most_inputs = MOST_INPUTS

    def build(self, request: Request, model: str, quirks: Quirks, receipt: Receipt) -> WireRequest:
        """See `build_request`."""
        return build_request(request, model, quirks, receipt)

    def events(self, wire: WireRequest) -> CohereEvents:
        """See `Dialect`."""
        return CohereEvents()

    def parse_body(self, body: bytes, wire: WireRequest) -> tuple[Delta, ...]:
        """See `parse_body`."""
        return parse_body(body)

    def parse_error(self, status: int, header: Header, body: bytes, *, now: float) -> RunnerError:
        """See `parse_error`."""
        return parse_error(status, header, body, now=now)

    def build_embed(self, request: EmbedRequest, model: str) -> WireRequest:
        """See `build_embed`."""
        return build_embed(request, model)

    def embed_marks(self, request: EmbedRequest) -> dict[str, Mark]:
        """See `embed_marks`."""
        return embed_marks(request)

    def parse_embed(self, body: bytes, count: int) -> Embeddings:
        """See `parse_embed`."""
        return parse_embed(body, count)


class CohereEvents:
    """See `Events`; `message-end` ends a stream."""

    __slots__ = ("_calls", "done")

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}
        self.done = False

    def feed(self, payload: bytes) -> tuple[Delta, ...]:
        """The delta of one event."""
        if payload.strip() == b"[DONE]":
            return ()
        try:
            event = _event(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise BadResponse(f"not an event: {exc}") from None
        if not event.type:
            if event.message is not None:
                raise _given_up(event.message)
            raise BadResponse("an event without a type")
        return (self._delta(event, Wire(COHERE, "event", payload)),)

    def _delta(self, event: _Event, wire: Wire) -> Delta:
        kind, piece = event.type, event.delta or _Piece()
        message = piece.message or _Message()
        if kind in ("content-delta", "content-start"):
            told = (event.logprobs,) if event.logprobs is not None else ()
            block = _first(message.content) or _Block()
            return Delta(
                text=block.text or "",
                reasoning=block.thinking or "",
                logprobs=_logprobs(told),
                wire=wire,
            )
        if kind == "tool-call-delta":
            return self._argue(event.index, _first(message.tool_calls), wire)
        if kind == "tool-call-start":
            return self._start(event.index, _first(message.tool_calls), wire)
        if kind == "tool-plan-delta":
            return Delta(text=message.tool_plan or "", wire=wire)
        if kind == "citation-start":
            return Delta(citations=_citations(message.citations), wire=wire)
        if kind == "message-start":
            return Delta(role="assistant", wire=wire)
        if kind == "message-end":
            finish = _finish(piece.finish_reason, piece.error)
            self.done = True
            return Delta(finish=finish, usage=_counted(piece.usage), wire=wire)
        # Kinds that are not known here are for clients that know them: more may come any day.
        return Delta(wire=wire)

    def _start(self, index: int, call: _Call | None, wire: Wire) -> Delta:
        if not 0 <= index < MAX_CALLS:
            raise BadResponse(f"a call with the index {index}")
        if call is None or index in self._calls:
            raise BadResponse("a call that begins twice, or is none")
        number = self._calls[index] = len(self._calls)
        function = call.function or _Function()
        made = ToolCallDelta(number, call.id, function.name, function.arguments or "")
        return Delta(tool_calls=(made,), wire=wire)

    def _argue(self, index: int, call: _Call | None, wire: Wire) -> Delta:
        number = self._calls.get(index)
        if number is None:
            raise BadResponse("arguments of a call that has not begun")
        piece = call.function.arguments if call is not None and call.function is not None else None
        if not piece:
            return Delta(wire=wire)
        return Delta(tool_calls=(ToolCallDelta(number, None, None, piece),), wire=wire)


def _first(value: Any) -> Any:
    """The one thing, where a list is allowed too: Cohere's reference and its servers differ."""
    if isinstance(value, list):
        return value[0] if value else None
    return value


def parse_body(body: bytes) -> tuple[Delta, ...]:
    """The deltas of a whole answer; the first carries the body as `Wire`.

    Raises:
        BadResponse: not JSON, or not an answer.
        RunnerError: the body is an error although the status said otherwise, or the model gave up.
    """
    try:
        answer = _answer(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadResponse(f"not an answer of Cohere's API: {exc}") from None
    message = answer.message
    if isinstance(message, str):
        raise _given_up(message)
    if message is None:
        raise BadResponse("the answer has no message")
    wire = Wire(COHERE, "body", body)
    deltas = [Delta(role="assistant", text=message.tool_plan or "", wire=wire)]
    content = message.content if isinstance(message.content, list) else [message.content]
    deltas += [
        Delta(text=block.text or "", reasoning=block.thinking or "") for block in content if block
    ]
    calls = message.tool_calls if isinstance(message.tool_calls, list) else [message.tool_calls]
    made: list[ToolCallDelta] = []
    for call in calls:
        if call is not None:
            function = call.function or _Function()
            given = function.arguments or "{}"
            made.append(ToolCallDelta(len(made), call.id, function.name, given))
    # A whole body is over, whether or not it says why.
    finish = _finish(answer.finish_reason, None) or ("tool_calls" if made else "stop")
    deltas.append(
        Delta(
            tool_calls=tuple(made),
            citations=_citations(message.citations),
            logprobs=_logprobs(answer.logprobs or ()),
            finish=finish,
            usage=_counted(answer.usage),
        )
    )
    return tuple(deltas)


def _citations(told: Raw) -> tuple[Raw, ...]:
    """One citation, or a list of them, each as it came."""
    data = bytes(told)
    if data in (b"", b"null"):
        return ()
    if data[:1] != b"[":
        return (Raw(data),)
    return tuple(Raw(bytes(one)) for one in _list(data))


def _finish(reason: str | None, error: str | None) -> Finish | None:
    if reason is None and error is None:
        return None
    finish = _FINISH.get(reason or "")
    if finish is not None and not error:
        return finish
    words = f": {shorten(error)}" if error else ""
    if reason == "TIMEOUT":
        raise UpstreamTimeout(f"the model ran out of time{words}")
    raise UpstreamError(f"the model gave up with {(reason or 'an error')[:100]}{words}")


def _counted(told: _Usage | None) -> Usage | None:
    """What is billed, where that is told: Cohere's own words around a prompt are not."""
    if told is None or (told.billed_units is None and told.tokens is None):
        return None
    billed, real = told.billed_units or _Counts(), told.tokens or _Counts()
    prompt = _whole(real.input_tokens if billed.input_tokens is None else billed.input_tokens)
    written = real.output_tokens if billed.output_tokens is None else billed.output_tokens
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=_whole(written),
        cached_tokens=min(_whole(told.cached_tokens), prompt),
    )


def _whole(count: float | None) -> int:
    return int(max(count or 0, 0))


def _logprobs(told: tuple[_Logprob, ...] | list[_Logprob]) -> Raw | None:
    """In OpenAI's form, which is ours. A text of several tokens has the product of theirs."""
    if not told:
        return None
    content = [
        {
            "token": one.text or "",
            "logprob": sum(one.logprobs or ()),
            "bytes": list((one.text or "").encode("utf-8", "replace")),
            "top_logprobs": [],
        }
        for one in told
    ]
    return Raw(msgspec.json.encode({"content": content, "refusal": None}))


# ---------------------------------------------------------------- errors


def parse_error(status: int, header: Header, body: bytes, *, now: float) -> RunnerError:
    """The error that a response of `status` (not 200) means: `{"message", "id"}`.

    Args:
        now: seconds since 1970, to read an HTTP date in `Retry-After`.
    """
    told = read(body)
    message = told.message or f"HTTP status {status} without a message"
    unknown = _UNKNOWN.search(message)
    if status == _DENIED:
        return ContentFiltered(message)
    if status == 422 and unknown:
        return BadRequest(message, param=unknown[1], code="unknown_parameter")
    if status == 400 and _OUTPUT.search(message):
        return BadRequest(message, param="max_tokens")
    if status == _CANCELLED:  # nobody here did: trying again helps, by Cohere's own words
        error: RunnerError = _given_up(message)
    else:
        error = classify(status, msgspec.structs.replace(told, message=message))
    if status in (408, 429, _CANCELLED) or status >= 500:
        error.retry_after = retry_after(header, now)
    return error


def _given_up(message: str) -> UpstreamError:
    return UpstreamError(shorten(message) or "an error without a message")


# ---------------------------------------------------------------- embeddings


class _ByType(Struct, rename={"floats": "float"}, gc=False):
    floats: list[list[float]] | None = None


class _Meta(Struct, gc=False):
    billed_units: _Counts | None = None
    tokens: _Counts | None = None


class _Vectors(Struct, gc=False):
    embeddings: _ByType | None = None
    meta: _Meta | None = None
    message: str | None = None


_vectors = msgspec.json.Decoder(_Vectors).decode


def parse_embed(body: bytes, count: int) -> Embeddings:
    """The vectors of `count` texts, in their order.

    Raises:
        BadResponse: not JSON, not embeddings, another number of them, or unequal lengths.
        UpstreamError: the body is an error although the status said otherwise.
    """
    try:
        found = _vectors(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadResponse(f"not embeddings: {exc}") from None
    if found.embeddings is None and found.message is not None:
        raise _given_up(found.message)
    told = (found.embeddings.floats if found.embeddings is not None else None) or []
    vectors = tuple(tuple(vector) for vector in told)
    if len(vectors) != count:
        raise BadResponse(f"{len(vectors)} embeddings for {count} inputs")
    if len({len(vector) for vector in vectors}) > 1:
        raise BadResponse("embeddings of unequal length")
    meta = found.meta or _Meta()
    return Embeddings(vectors, _counted(_Usage(meta.billed_units, meta.tokens)) or Usage())
