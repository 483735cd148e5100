"""Answers in the JSON of Gemini's API, made from parsed deltas. Pure.

Knows: whole answers, the chunks of a stream and what is between them, errors, models. Does not
know: requests on the wire, sockets.

A signature that another provider made goes out as base64 of `llmrr:` and itself, since clients of
this API take any signature for base64; `gemini_read.py` gets it back.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.deltas import Answer, Choice
from llm_runner_router.errors import RunnerError, StreamBroken
from llm_runner_router.types import GOOGLE, Delta, Finish, ModelCard, Request, ToolCall, Usage

from .base import Reply
from .codec import model_name
from .gemini_read import REDACTED, THOUGHT

DIALECT = "gemini_generate"
_FINISH: dict[Finish, str] = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "content_filter": "SAFETY",
    "error": "OTHER",
}
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_TYPE = "type.googleapis.com/google.rpc."
_encode = msgspec.json.Encoder().encode


# ---------------------------------------------------------------- errors


def error(exc: RunnerError) -> bytes:
    """`{"error": {code, message, status, details}}`; the hint is part of the message."""
    status = _STATUS.get(exc.status, "INVALID_ARGUMENT" if exc.status < 500 else "INTERNAL")
    told: dict[str, Any] = {"code": exc.status, "message": str(exc), "status": status}
    details: list[dict[str, Any]] = []
    if exc.code is not None:
        info = {"reason": exc.code.upper(), "domain": "llm-runner-router"}
        details.append({"@type": _TYPE + "ErrorInfo", **info})
    if exc.param is not None:
        violation = {"field": exc.param, "description": exc.message}
        details.append({"@type": _TYPE + "BadRequest", "fieldViolations": [violation]})
    if exc.retry_after is not None:
        details.append({"@type": _TYPE + "RetryInfo", "retryDelay": f"{exc.retry_after:.3f}s"})
    if details:
        told["details"] = details
    return _encode({"error": told})


def stream_error(exc: RunnerError) -> bytes:
    """The error as an event."""
    return b"data: " + error(exc) + b"\n\n"


def list_error(exc: RunnerError) -> bytes:
    """The error as the last of a list that has begun."""
    return b",\r\n" + error(exc) + b"\n]"


# ---------------------------------------------------------------- between chunks


class Frames(Protocol):
    """What is around the chunks of one stream."""

    def chunk(self, data: bytes) -> bytes:
        """`data` with what is around it."""
        ...

    def end(self) -> bytes:
        """What closes the stream."""
        ...


class Events:
    """Server-sent events; nothing marks their end."""

    def chunk(self, data: bytes) -> bytes:
        """One event."""
        if b"\n" in data:
            data = data.replace(b"\n", b"\ndata: ")
        return b"data: %b\n\n" % data

    def end(self) -> bytes:
        """Nothing."""
        return b""


class Listed:
    """The elements of one JSON list."""

    def __init__(self) -> None:
        self._begun = False

    def chunk(self, data: bytes) -> bytes:
        """One element."""
        before = b",\r\n" if self._begun else b"["
        self._begun = True
        return before + data

    def end(self) -> bytes:
        """The end of the list."""
        return b"\n]" if self._begun else b"[]"


# ---------------------------------------------------------------- streams


class Relay:
    """Passes upstream's chunks on untouched; a delta without `wire` belongs to the one before."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._begun: set[int] = set()
        self._finished: set[int] = set()

    def add(self, delta: Delta) -> bytes:
        """The bytes to send for `delta`; may be empty."""
        self._begun.add(delta.index)
        if delta.finish is not None:
            self._finished.add(delta.index)
        return b"" if delta.wire is None else self._frames.chunk(delta.wire.data)

    def end(self) -> bytes:
        """What closes the stream.

        Raises:
            StreamBroken: a candidate had no reason to stop.
        """
        _check(self._begun, self._finished)
        return self._frames.end()


class ChunkWriter:
    """Turns deltas into chunks.

    A call is one part here, whole, so calls wait for the end, as the reasons to finish do: the
    last chunk has them together with the usage.
    """

    def __init__(self, request: Request, reply: Reply, frames: Frames) -> None:
        self._request = request
        self._reply = reply
        self._frames = frames
        self._shown = shows_thoughts(request)
        self._begun: set[int] = set()
        self._calls: dict[tuple[int, int], list[Any]] = {}
        self._finish: dict[int, Finish] = {}

    def add(self, delta: Delta) -> bytes:
        """The chunk for `delta`; none for one that has nothing to show yet."""
        self._begun.add(delta.index)
        for piece in delta.tool_calls:
            held = self._calls.setdefault((delta.index, piece.index), ["", "", [], None])
            held[0] = held[0] or piece.id or ""
            held[1] += piece.name or ""
            held[2].append(piece.arguments)
            held[3] = held[3] or piece.signature
        if delta.finish is not None:
            self._finish[delta.index] = delta.finish
        parts = _parts(
            delta.reasoning if self._shown else "",
            delta.signature,
            (delta.redacted,) if delta.redacted else (),
            delta.text or delta.refusal,
        )
        if not parts and delta.logprobs is None:
            return b""
        told = _candidate(delta.index, parts)
        if delta.logprobs is not None:
            told["logprobsResult"] = _logprobs((delta.logprobs,))
        return self._chunk([told], None)

    def end(self) -> bytes:
        """The last chunk: calls, reasons to finish, usage.

        Raises:
            StreamBroken: a candidate had no reason to stop.
        """
        _check(self._begun, self._finish.keys())
        last = []
        for index, finish in sorted(self._finish.items()):
            calls = [
                ToolCall(id, name, "".join(arguments), signature=signature)
                for (choice, _), (id, name, arguments, signature) in sorted(self._calls.items())
                if choice == index
            ]
            parts = [_call(call, self._reply, index, k) for k, call in enumerate(calls)]
            told = _candidate(index, parts or [{"text": ""}])
            last.append({**told, "finishReason": _FINISH[finish]})
        return self._chunk(last, self._reply.usage) + self._frames.end()

    def _chunk(self, candidates: list[dict[str, Any]], usage: Usage | None) -> bytes:
        return self._frames.chunk(_body(candidates, usage, self._request, self._reply))


def _check(begun: set[int], finished: Iterable[int]) -> None:
    ended = set(finished)
    if not ended or begun - ended:
        raise StreamBroken("the stream ended without a finish reason")


def shows_thoughts(request: Request) -> bool:
    """Whether thoughts are part of the answer: here only who asks for them gets them."""
    return request.reasoning is not None and request.reasoning.shown is True


# ---------------------------------------------------------------- whole answers


def response(answer: Answer, request: Request, reply: Reply) -> bytes:
    """A whole answer."""
    shown = shows_thoughts(request)
    found = [_choice(choice, reply, shown) for choice in answer.choices]
    return _body(found, answer.usage, request, reply)


def _choice(choice: Choice, reply: Reply, shown: bool) -> dict[str, Any]:
    thought = choice.reasoning if shown else ""
    parts = _parts(thought, choice.signature, choice.redacted, "")
    said = choice.text or choice.refusal
    parts += [{"text": said}] if said else []
    calls = enumerate(choice.tool_calls)
    parts += [_call(call, reply, choice.index, k) for k, call in calls]
    told = _candidate(choice.index, parts or [{"text": ""}])
    told["finishReason"] = _FINISH[choice.finish or "stop"]
    if choice.logprobs:
        told["logprobsResult"] = _logprobs(choice.logprobs)
    return told


def _body(
    candidates: list[dict[str, Any]], usage: Usage | None, request: Request, reply: Reply
) -> bytes:
    told: dict[str, Any] = {"candidates": candidates}
    if usage is not None:
        told["usageMetadata"] = counted(usage)
    told["modelVersion"] = model_name(request, reply)
    told["responseId"] = reply.id
    return _encode(told)


def _candidate(index: int, parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"content": {"parts": parts, "role": "model"}, "index": index}


def _parts(
    reasoning: str, signature: str, redacted: Sequence[str], text: str
) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if reasoning or (signature and not text):
        thought: dict[str, Any] = {"text": reasoning, "thought": True}
        parts.append({**thought, "thoughtSignature": _sign(signature)} if signature else thought)
        signature = ""
    for data in redacted:
        sealed = base64.b64encode(REDACTED + data.encode()).decode()
        parts.append({"text": "", "thought": True, "thoughtSignature": sealed})
    if text:
        said: dict[str, Any] = {"text": text}
        parts.append({**said, "thoughtSignature": _sign(signature)} if signature else said)
    return parts


def _sign(signature: str) -> str:
    if signature.startswith(GOOGLE):
        return signature.removeprefix(GOOGLE)
    return base64.b64encode(THOUGHT + signature.encode()).decode()


def _call(call: ToolCall, reply: Reply, choice: int, k: int) -> dict[str, Any]:
    id = call.id or f"call_{reply.id.rpartition('-')[2]}_{choice}_{k}"
    told = {"functionCall": {"id": id, "name": call.name, "args": _args(call.arguments)}}
    return {**told, "thoughtSignature": _sign(call.signature)} if call.signature else told


def _args(arguments: str) -> Raw | dict[str, Any]:
    """The arguments of a call are an object there; what is none is kept as a text inside of one."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        value = None
    if isinstance(value, dict):
        return Raw((arguments or "{}").encode())
    return {"arguments": arguments}


def counted(usage: Usage) -> dict[str, int]:
    """Thoughts are counted beside the answer there."""
    told = {
        "promptTokenCount": usage.prompt_tokens,
        "candidatesTokenCount": usage.completion_tokens - usage.reasoning_tokens,
        "totalTokenCount": usage.total_tokens,
    }
    if usage.reasoning_tokens:
        told["thoughtsTokenCount"] = usage.reasoning_tokens
    if usage.cached_tokens:
        told["cachedContentTokenCount"] = usage.cached_tokens
    return told


class _Token(Struct, frozen=True):
    token: str
    logprob: float
    top_logprobs: list[_Token] = []


class _Logprobs(Struct, frozen=True):
    content: list[_Token] | None = None


_tokens = msgspec.json.Decoder(_Logprobs)


def _logprobs(pieces: Sequence[Raw]) -> dict[str, Any]:
    tokens = [token for piece in pieces for token in _tokens.decode(piece).content or ()]
    return {
        "chosenCandidates": [_token(token) for token in tokens],
        "topCandidates": [
            {"candidates": [_token(one) for one in token.top_logprobs]} for token in tokens
        ],
    }


def _token(token: _Token) -> dict[str, Any]:
    return {"token": token.token, "logProbability": token.logprob}


# ---------------------------------------------------------------- models


def model(card: ModelCard, created: int) -> bytes:
    """One model."""
    return _encode(_model(card))


def models(cards: Sequence[ModelCard], created: int) -> bytes:
    """All models, on one page."""
    return _encode({"models": [_model(card) for card in cards]})


def _model(card: ModelCard) -> dict[str, Any]:
    methods = ["generateContent", "streamGenerateContent", "countTokens"]
    if card.capabilities.embeddings:
        methods += ["embedContent", "batchEmbedContents"]
    told: dict[str, Any] = {
        "name": f"models/{card.name}",
        "version": "",
        "displayName": card.description or card.name,
        "supportedGenerationMethods": methods,
    }
    if card.context:
        told["inputTokenLimit"] = card.context
    if card.max_output:
        told["outputTokenLimit"] = card.max_output
    return told
