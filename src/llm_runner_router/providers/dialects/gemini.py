"""Gemini's dialect as an upstream speaks it: chunks, bodies and errors in. Pure.

Knows: the JSON of `generateContent` and its stream, vectors, Google's errors. Does not know:
requests (`gemini_request.py`), sockets, SSE framing, keys.

A stream has no mark of its end: it is over when its bytes are, and clean if every candidate had a
reason to finish. Parts that have no name here (code run on Google's side, pictures as answers) pass
as they are to clients of the same dialect, and are not seen by others.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadResponse, RunnerError, UpstreamError
from llm_runner_router.fidelity import Receipt
from llm_runner_router.providers.sse import SSEParser
from llm_runner_router.types import (
    GOOGLE,
    Delta,
    Embeddings,
    EmbedRequest,
    Finish,
    Request,
    TokenizeRequest,
    ToolCallDelta,
    Usage,
    Wire,
)

from .base import Dialect, Framing, Header, Quirks, WireRequest, number
from .gemini_errors import parse_error, parse_event_error
from .gemini_request import GENERATE, build_count, build_embed, build_request

_FINISH: dict[str, Finish] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "PUP_LIMITED_DISABLED": "content_filter",
    "CONTINUATION": "length",
}
"""With any other reason the model gave up: no answer, and another try may give one. Only `STOP` is
a natural end, so a reason that is not known here is none."""
_UNSPECIFIED = "FINISH_REASON_UNSPECIFIED"
_NONE = Raw(b"")
MAX_CANDIDATES = 128
MAX_ERROR_LINES = 256
MAX_ERROR = 64 * 1024
"""Lines and bytes of a bare error inside a stream."""


class _Call(Struct, rename="camel", gc=False):
    id: str | None = None
    name: str | None = None
    args: Raw = _NONE


class _Part(Struct, rename="camel", gc=False):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: _Call | None = None


class _Content(Struct, gc=False):
    parts: list[_Part] | None = None


class _Citations(Struct, rename="camel", gc=False):
    citation_sources: list[Raw] | None = None
    citations: list[Raw] | None = None


class _Token(Struct, rename="camel", gc=False):
    token: str = ""
    log_probability: float = 0.0


class _Top(Struct, gc=False):
    candidates: list[_Token] | None = None


class _Logprobs(Struct, rename="camel", gc=False):
    chosen_candidates: list[_Token] | None = None
    top_candidates: list[_Top] | None = None


class _Candidate(Struct, rename="camel", gc=False):
    content: _Content | None = None
    index: int = 0
    finish_reason: str | None = None
    finish_message: str | None = None
    citation_metadata: _Citations | None = None
    logprobs_result: _Logprobs | None = None


class _Usage(Struct, rename="camel", gc=False):
    prompt_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None


class _Feedback(Struct, rename="camel", gc=False):
    block_reason: str | None = None


class _Chunk(Struct, rename="camel", gc=False):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: _Usage | None = None
    response_id: str | None = None
    model_version: str | None = None
    error: Any = None


_chunk = msgspec.json.Decoder(_Chunk).decode
_chunks = msgspec.json.Decoder(list[Raw]).decode


class Gemini(Dialect):
    """See `Dialect`; `generateContent` and what belongs to it."""

    name = "gemini"
    embed_tasks = True

    def build(self, request: Request, model: str, quirks: Quirks, receipt: Receipt) -> WireRequest:
        """See `build_request`."""
        return build_request(request, model, quirks, receipt)

    def events(self, wire: WireRequest) -> GeminiEvents:
        """See `Dialect`."""
        return GeminiEvents()

    def framing(self) -> Framing:
        """See `_Lines`."""
        return _Lines()

    def parse_body(self, body: bytes, wire: WireRequest) -> tuple[Delta, ...]:
        """See `parse_body`."""
        return parse_body(body)

    def parse_error(self, status: int, header: Header, body: bytes, *, now: float) -> RunnerError:
        """See `gemini_errors.parse_error`."""
        return parse_error(status, header, body, now=now)

    def build_count(self, request: TokenizeRequest, model: str, receipt: Receipt) -> WireRequest:
        """See `build_count`."""
        return build_count(request, model, receipt)

    def parse_count(self, body: bytes) -> int:
        """See `Dialect`."""
        return number(body, "totalTokens")

    def build_embed(self, request: EmbedRequest, model: str) -> WireRequest:
        """See `build_embed`."""
        return build_embed(request, model)

    def parse_embed(self, body: bytes, count: int) -> Embeddings:
        """See `parse_embed`."""
        return parse_embed(body, count)


class _Lines(SSEParser):
    """Server-sent events, and an error that comes in the middle of them as bare JSON.

    Google's servers write an error so that happens after the head of the response is out.
    """

    __slots__ = ("_bare", "_bytes_held", "_lines_held")

    def __init__(self) -> None:
        super().__init__()
        self._bare: list[bytes] = []
        self._lines_held = 0
        self._bytes_held = 0

    def _take(self, line: bytes, payloads: list[bytes]) -> None:
        if not self._bare and line[:1] not in (b"{", b"["):
            super()._take(line, payloads)
            return
        self._lines_held += 1
        self._bytes_held += len(line)
        if self._lines_held > MAX_ERROR_LINES or self._bytes_held > MAX_ERROR:
            return  # no error is so long; the stream ends without a finish
        self._bare.append(line)
        whole = b"\n".join(self._bare)
        try:
            value = msgspec.json.decode(whole)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        self._bare.clear()
        error = value[0] if isinstance(value, list) and value else value
        payloads.append(msgspec.json.encode(error))


class GeminiEvents:
    """See `Events`; a refused prompt ends a stream, nothing else does but the end of its bytes."""

    __slots__ = ("_begun", "_calls", "_form", "done")

    def __init__(self, form: Literal["event", "body"] = "event") -> None:
        self._form: Literal["event", "body"] = form
        self._begun: set[int] = set()
        self._calls: dict[int, int] = {}
        self.done = False

    def feed(self, payload: bytes) -> tuple[Delta, ...]:
        """The deltas of one chunk, one or more per candidate; the first carries it as `Wire`."""
        try:
            chunk = _chunk(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise BadResponse(f"not an answer of Gemini's API: {exc}") from None
        if chunk.error is not None:
            raise parse_event_error(chunk.error)
        wire = Wire(GENERATE, self._form, payload)
        usage = _counted(chunk.usage_metadata) if chunk.usage_metadata is not None else None
        if not chunk.candidates:
            return (self._without(chunk, usage, wire),)
        for candidate in chunk.candidates:
            _check(candidate)
        if len(chunk.candidates) == 1:
            plain = self._plain(chunk.candidates[0], usage, wire)
            if plain is not None:
                return (plain,)
        pieces: list[dict[str, Any]] = []
        for candidate in chunk.candidates:
            pieces += self._pieces(candidate)
        pieces[0]["wire"] = wire
        pieces[-1]["usage"] = usage
        return tuple([Delta(**piece) for piece in pieces])

    def _plain(self, candidate: _Candidate, usage: Usage | None, wire: Wire) -> Delta | None:
        """The usual case in half the time: one text and nothing beside it."""
        parts = candidate.content.parts if candidate.content is not None else None
        if candidate.logprobs_result is not None or candidate.citation_metadata is not None:
            return None
        if parts is None or len(parts) != 1:
            return None
        part, index = parts[0], candidate.index
        if part.function_call is not None or part.thought_signature is not None:
            return None
        role = None if index in self._begun else "assistant"
        self._begun.add(index)
        text, thought = part.text or "", part.thought
        return Delta(
            index=index,
            role=role,
            text="" if thought else text,
            reasoning=text if thought else "",
            finish=self._finish(candidate),
            usage=usage,
            wire=wire,
        )

    def _without(self, chunk: _Chunk, usage: Usage | None, wire: Wire) -> Delta:
        """The delta of a chunk without candidates."""
        feedback = chunk.prompt_feedback
        if feedback is not None and feedback.block_reason is not None:
            self.done = True
            return Delta(role="assistant", finish="content_filter", usage=usage, wire=wire)
        if usage is None and chunk.response_id is None and chunk.model_version is None:
            raise BadResponse("an answer without candidates")
        return Delta(usage=usage, wire=wire)

    def _pieces(self, candidate: _Candidate) -> list[dict[str, Any]]:
        """What the deltas of one candidate say; at least one."""
        index = candidate.index
        parts = (candidate.content.parts if candidate.content is not None else None) or ()
        pieces = [self._piece(index, part) for part in parts] or [{"index": index}]
        if index not in self._begun:
            self._begun.add(index)
            pieces[0]["role"] = "assistant"
        last = pieces[-1]
        last["finish"] = self._finish(candidate)
        if candidate.logprobs_result is not None:
            last["logprobs"] = _logprobs(candidate.logprobs_result)
        told = candidate.citation_metadata
        if told is not None:
            found = told.citation_sources or told.citations or ()
            last["citations"] = tuple(one.copy() for one in found)
        return pieces

    def _piece(self, index: int, part: _Part) -> dict[str, Any]:
        signature = GOOGLE + part.thought_signature if part.thought_signature else ""
        call = part.function_call
        if call is not None and call.name:
            number = self._calls.get(index, 0)
            self._calls[index] = number + 1
            given = "{}" if call.args is _NONE else bytes(call.args).decode()
            made = ToolCallDelta(number, call.id, call.name, given, signature or None)
            return {"index": index, "tool_calls": (made,)}
        text = part.text or ""
        if part.thought:
            return {"index": index, "reasoning": text, "signature": signature}
        return {"index": index, "text": text, "signature": signature}

    def _finish(self, candidate: _Candidate) -> Finish | None:
        reason = candidate.finish_reason
        if reason is None or reason == _UNSPECIFIED:
            return None
        finish = _FINISH[reason]
        return "tool_calls" if finish == "stop" and candidate.index in self._calls else finish


def _check(candidate: _Candidate) -> None:
    """Nothing of a chunk is taken in that has a fault: it is read a second time then."""
    if not 0 <= candidate.index < MAX_CANDIDATES:
        raise BadResponse(f"a candidate with the index {candidate.index}")
    reason = candidate.finish_reason
    if reason is not None and reason not in _FINISH and reason != _UNSPECIFIED:
        told = f": {candidate.finish_message[:500]}" if candidate.finish_message else ""
        raise UpstreamError(f"the model gave up with {reason[:100]}{told}")


def parse_body(body: bytes) -> tuple[Delta, ...]:
    """The deltas of a whole answer; the first carries the body as `Wire`.

    A list of chunks, as a stream without SSE is, is read too, but is no body.

    Raises:
        BadResponse: not JSON, or not an answer.
        RunnerError: the body is an error although the status said otherwise.
    """
    if body.lstrip()[:1] == b"[":
        return _listed(body)
    events = GeminiEvents("body")
    deltas = events.feed(body)
    if not events.done and deltas[0].role is None:
        raise BadResponse("an answer without candidates")
    ended = {delta.index for delta in deltas if delta.finish is not None}
    calls = {delta.index for delta in deltas if delta.tool_calls}
    # A whole body is over, whether or not it says why.
    missing = sorted({delta.index for delta in deltas} - ended)
    ends = (Delta(index=i, finish="tool_calls" if i in calls else "stop") for i in missing)
    return (*deltas, *ends)


def _listed(body: bytes) -> tuple[Delta, ...]:
    try:
        chunks = _chunks(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadResponse(f"not an answer of Gemini's API: {exc}") from None
    events = GeminiEvents()
    deltas = [
        msgspec.structs.replace(delta, wire=None)
        for chunk in chunks
        for delta in events.feed(bytes(chunk))
    ]
    ended = {delta.index for delta in deltas if delta.finish is not None}
    if not ended or {delta.index for delta in deltas} - ended:
        raise BadResponse("a list of chunks without a finish reason")
    return tuple(deltas)


def _counted(told: _Usage) -> Usage:
    """Thoughts are counted beside the answer there; ours is all that the model wrote."""
    thought = max(told.thoughts_token_count or 0, 0)
    prompt = max(told.prompt_token_count or 0, 0) + max(told.tool_use_prompt_token_count or 0, 0)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=max(told.candidates_token_count or 0, 0) + thought,
        cached_tokens=min(max(told.cached_content_token_count or 0, 0), prompt),
        reasoning_tokens=thought,
    )


def _logprobs(told: _Logprobs) -> Raw:
    """Log-probabilities in OpenAI's form, which is ours."""
    tops = told.top_candidates or []
    content = []
    for i, chosen in enumerate(told.chosen_candidates or ()):
        near = (tops[i].candidates if i < len(tops) else None) or ()
        content.append({**_token(chosen), "top_logprobs": [_token(one) for one in near]})
    return Raw(msgspec.json.encode({"content": content, "refusal": None}))


def _token(one: _Token) -> dict[str, Any]:
    return {
        "token": one.token,
        "logprob": one.log_probability,
        "bytes": list(one.token.encode("utf-8", "replace")),
    }


# ---------------------------------------------------------------- embeddings


class _Vector(Struct, gc=False):
    values: list[float]


class _Vectors(Struct, rename="camel", gc=False):
    embeddings: list[_Vector] | None = None
    usage_metadata: _Usage | None = None
    error: Any = None


_vectors = msgspec.json.Decoder(_Vectors).decode


def parse_embed(body: bytes, count: int) -> Embeddings:
    """The vectors of `count` texts, in their order.

    Raises:
        BadResponse: not JSON, not embeddings, another number of them, or unequal lengths.
        RunnerError: the body is an error although the status said otherwise.
    """
    try:
        found = _vectors(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadResponse(f"not embeddings: {exc}") from None
    if found.error is not None:
        raise parse_event_error(found.error)
    vectors = tuple(tuple(vector.values) for vector in found.embeddings or ())
    if len(vectors) != count:
        raise BadResponse(f"{len(vectors)} embeddings for {count} inputs")
    if len({len(vector) for vector in vectors}) > 1:
        raise BadResponse("embeddings of unequal length")
    return Embeddings(vectors, _counted(found.usage_metadata or _Usage()))
