"""OpenAI's dialect as an upstream speaks it: requests out, events and bodies in. Pure.

Knows: the JSON of chat completions, completions and embeddings of OpenAI and of the many hosts
that imitate it. Does not know: sockets, SSE framing, keys, when a stream has ended cleanly.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadResponse, RunnerError, UpstreamError
from llm_runner_router.fidelity import Receipt
from llm_runner_router.types import (
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
from .openai_errors import parse_error, parse_event_error
from .openai_request import CHAT, COMPLETIONS, build_embed, build_request, signature_of

__all__ = ["CHAT", "COMPLETIONS", "OpenAI", "OpenAIEvents"]


class OpenAI(Dialect):
    """See `Dialect`; chat completions and completions."""

    name = "openai"

    def build(self, request: Request, model: str, quirks: Quirks, receipt: Receipt) -> WireRequest:
        """See `build_request`."""
        return build_request(request, model, quirks, receipt)

    def events(self, wire: WireRequest) -> OpenAIEvents:
        """See `Dialect`."""
        return OpenAIEvents(wire.dialect)

    def parse_body(self, body: bytes, wire: WireRequest) -> tuple[Delta, ...]:
        """See `parse_body`."""
        return parse_body(body, wire.dialect)

    def parse_error(self, status: int, header: Header, body: bytes, *, now: float) -> RunnerError:
        """See `openai_errors.parse_error`."""
        return parse_error(status, header, body, now=now)

    def build_embed(self, request: EmbedRequest, model: str) -> WireRequest:
        """See `build_embed`."""
        return build_embed(request, model)

    def parse_embed(self, body: bytes, count: int) -> Embeddings:
        """See `parse_embed`."""
        return parse_embed(body, count)


class OpenAIEvents:
    """See `Events`; `[DONE]` ends a stream."""

    __slots__ = ("_dialect", "done")

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self.done = False

    def feed(self, payload: bytes) -> tuple[Delta, ...]:
        """The deltas of one event."""
        if payload == b"[DONE]" or payload.strip() == b"[DONE]":
            self.done = True
            return ()
        return parse_event(payload, self._dialect)


_FINISH: dict[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_length": "length",  # Mistral
    "safety": "content_filter",
    "error": "error",
    "abort": "error",  # vLLM
    "insufficient_system_resource": "error",  # DeepSeek
}
"""Anything else (`eos`, `end_turn`, `stop_sequence` …) is a `stop`."""

_NONE = Raw(b"")

MAX_CHOICES = 128
"""Choices of one answer; more than any host offers. Each one costs memory while it grows."""


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    extra_content: Any = None
    """Where Google's endpoint for this dialect signs calls."""


class _Part(Struct, gc=False):
    type: str = ""
    text: str | None = None
    thinking: Any = None


class _Piece(Struct, gc=False):
    """`delta` of a chunk, `message` of a body."""

    role: str | None = None
    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct, gc=False):
    index: int = 0
    delta: _Piece | None = None
    message: _Piece | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Raw = _NONE


class _PromptDetails(Struct, gc=False):
    cached_tokens: int | None = None


class _CompletionDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek


class _Groq(Struct, gc=False):
    usage: _Usage | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: Raw = _NONE
    error: Any = None
    x_groq: _Groq | None = None


_chunk = msgspec.json.Decoder(_Chunk).decode
_EMPTY = _Piece()


def parse_event(payload: bytes, dialect: str = CHAT) -> tuple[Delta, ...]:
    """The deltas of one event, `[DONE]` excepted: one, or one per choice if it carries several.

    The first carries the event's bytes as `Wire`; usage and timings stand on the last.

    Raises:
        BadResponse: not JSON, or not a chunk.
        RunnerError: the event is an error, or a choice that ended in one.
    """
    chunk = _decode(payload)
    choices = chunk.choices
    wire = Wire(dialect, "event", payload)
    usage = _usage(chunk)
    timings = _raw(chunk.timings)
    if not choices:
        return (Delta(usage=usage, timings=timings, wire=wire),)
    if len(choices) == 1:
        return (_delta(choices[0], usage, timings, wire),)
    last = len(choices) - 1
    return tuple(
        _delta(
            choice,
            usage if i == last else None,
            timings if i == last else None,
            None if i else wire,
        )
        for i, choice in enumerate(choices)
    )


def parse_body(body: bytes, dialect: str = CHAT) -> tuple[Delta, ...]:
    """The deltas of a whole answer, one per choice; the first carries the body as `Wire`.

    Raises:
        BadResponse: not JSON, not an answer, or an answer without choices.
        RunnerError: the body is an error although the status said otherwise.
    """
    chunk = _decode(body)
    choices = chunk.choices
    if not choices:
        raise BadResponse("the answer has no choices")
    usage, timings = _usage(chunk), _raw(chunk.timings)
    wire = Wire(dialect, "body", body)
    last = len(choices) - 1
    deltas = []
    for i, choice in enumerate(choices):
        if not choice.finish_reason:  # a whole body is over, whether or not it says why
            called = choice.message is not None and choice.message.tool_calls
            choice.finish_reason = "tool_calls" if called else "stop"
        here = i == last
        deltas.append(
            _delta(choice, usage if here else None, timings if here else None, None if i else wire)
        )
    return tuple(deltas)


def _decode(payload: bytes) -> _Chunk:
    try:
        chunk = _chunk(payload)
    except msgspec.DecodeError as exc:
        raise BadResponse(f"not a {'chunk' if len(payload) < 4096 else 'body'}: {exc}") from exc
    except (UnicodeDecodeError, RecursionError) as exc:
        raise BadResponse(f"not JSON: {type(exc).__name__}") from None
    if chunk.error is not None:
        raise parse_event_error(chunk.error)
    if chunk.choices is None and chunk.usage is None and chunk.timings is _NONE:
        raise _strange(payload)
    return chunk


def _strange(payload: bytes) -> RunnerError:
    """An object that is neither a chunk nor marked as an error; vLLM sent bare errors once."""
    value = msgspec.json.decode(payload)
    if isinstance(value, dict) and (value.get("object") == "error" or "message" in value):
        return parse_event_error(value)
    return BadResponse("an object without choices, usage or error")


def _delta(choice: _Choice, usage: Usage | None, timings: Raw | None, wire: Wire | None) -> Delta:
    piece = choice.delta or choice.message or _EMPTY
    reason = choice.finish_reason
    finish = None
    if reason:
        finish = _FINISH.get(reason.lower(), "stop")
        if finish == "error":
            raise UpstreamError(f"the upstream gave up with finish_reason {reason[:100]!r}")
    if not 0 <= choice.index < MAX_CHOICES:
        raise BadResponse(f"a choice with the index {choice.index}")
    content = piece.content
    reasoning = piece.reasoning_content
    if reasoning is None and type(piece.reasoning) is str:
        reasoning = piece.reasoning
    if isinstance(content, list):
        content, thought = _parts(content)
        reasoning = (reasoning or "") + thought
    return Delta(
        index=choice.index,
        role=piece.role,
        text=content or choice.text or "",
        reasoning=reasoning or "",
        refusal=piece.refusal or "",
        tool_calls=_calls(piece.tool_calls) if piece.tool_calls else (),
        finish=finish,
        usage=usage,
        logprobs=_raw(choice.logprobs),
        timings=timings,
        wire=wire,
    )


def _parts(content: list[_Part]) -> tuple[str, str]:
    """Text and reasoning of content given in parts (Mistral's reasoning models)."""
    text, thought = [], []
    for part in content:
        if part.text:
            text.append(part.text)
        if isinstance(part.thinking, str):
            thought.append(part.thinking)
        elif isinstance(part.thinking, list):
            thought.extend(str(p.get("text") or "") for p in part.thinking if isinstance(p, dict))
    return "".join(text), "".join(thought)


def _calls(calls: list[_Call]) -> tuple[ToolCallDelta, ...]:
    return tuple(
        ToolCallDelta(
            index=i if call.index is None else call.index,
            id=call.id or None,
            name=(call.function.name or None) if call.function else None,
            arguments=_arguments(call.function),
            signature=None if call.extra_content is None else signature_of(call.extra_content),
        )
        for i, call in enumerate(calls)
    )


def _arguments(function: _Function | None) -> str:
    if function is None or function.arguments is None:
        return ""
    if isinstance(function.arguments, str):
        return function.arguments
    return msgspec.json.encode(function.arguments).decode()


def _raw(value: Raw) -> Raw | None:
    if value is _NONE or bytes(value) == b"null":
        return None
    # A copy: msgspec's Raw is a view that would keep the whole event alive with it.
    return value.copy()


def _usage(chunk: _Chunk) -> Usage | None:
    told = chunk.usage
    if told is None:
        if chunk.x_groq is None or chunk.x_groq.usage is None:
            return None
        told = chunk.x_groq.usage
    # A count below zero would be money back, and a part above its whole would be too.
    prompt, completion = max(told.prompt_tokens or 0, 0), max(told.completion_tokens or 0, 0)
    details, spent = told.prompt_tokens_details, told.completion_tokens_details
    cached = (details.cached_tokens if details else None) or told.prompt_cache_hit_tokens or 0
    reasoning = (spent.reasoning_tokens if spent else None) or 0
    if reasoning and told.total_tokens == prompt + completion + reasoning:
        completion += reasoning  # xAI counts them beside the completion, and bills them
    return Usage(
        prompt, completion, min(max(cached, 0), prompt), min(max(reasoning, 0), completion)
    )


# ---------------------------------------------------------------- embeddings


class _Vector(Struct):
    embedding: list[float] | str
    index: int | None = None


class _Vectors(Struct):
    data: list[_Vector] | None = None
    usage: _Usage | None = None
    error: Any = None


_vectors = msgspec.json.Decoder(_Vectors).decode


def parse_embed(body: bytes, count: int) -> Embeddings:
    """The vectors of `count` inputs, in their order, from numbers or base64 float32 (LE).

    Raises:
        BadResponse: not JSON, not embeddings, another number of them, or unequal lengths.
        RunnerError: the body is an error although the status said otherwise.
    """
    try:
        found = _vectors(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadResponse(f"not embeddings: {exc}") from exc
    if found.error is not None:
        raise parse_event_error(found.error)
    data = found.data or []
    placed: dict[int, tuple[float, ...]] = {
        i if vector.index is None else vector.index: _floats(vector.embedding)
        for i, vector in enumerate(data)
    }
    if len(data) != count or sorted(placed) != list(range(count)):
        raise BadResponse(f"{len(data)} embeddings for {count} inputs")
    vectors = tuple(placed[i] for i in range(count))
    if len({len(vector) for vector in vectors}) > 1:
        raise BadResponse("embeddings of unequal length")
    told = found.usage or _Usage()
    return Embeddings(vectors, Usage(max(told.prompt_tokens or told.total_tokens or 0, 0)))


def _floats(value: list[float] | str) -> tuple[float, ...]:
    if not isinstance(value, str):
        return tuple(value)
    try:
        data = base64.b64decode(value, validate=True)
        return struct.unpack(f"<{len(data) // 4}f", data)
    except (binascii.Error, struct.error) as exc:
        raise BadResponse(f"an embedding is not base64 float32: {exc}") from exc
