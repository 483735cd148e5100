"""Cohere's v2 API for tests, strict about what it is sent: an unknown or mistyped field is refused.

The fields are those of Cohere's public reference (docs.cohere.com/reference/chat, /embed, /rerank),
written down here by themselves, not taken from the code under test. `checked` reads a request as
that API would; `Cohere` answers with what it is told to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from .upstream import Seen, reply


class _Strict(Struct, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Image(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class Document(_Strict):
    data: dict[str, Any]
    id: str | None = None


class Text(_Strict, tag_field="type", tag="text"):
    text: str


class Picture(_Strict, tag_field="type", tag="image_url"):
    image_url: Image


class Thought(_Strict, tag_field="type", tag="thinking"):
    thinking: str


class Found(_Strict, tag_field="type", tag="document"):
    document: Document


class Named(_Strict):
    name: str
    arguments: str


class Call(_Strict):
    id: str
    type: Literal["function"]
    function: Named


class System(_Strict, tag_field="role", tag="system"):
    content: str | list[Text]


class User(_Strict, tag_field="role", tag="user"):
    content: str | list[Text | Picture]


class Assistant(_Strict, tag_field="role", tag="assistant"):
    content: str | list[Text | Thought] | None = None
    tool_plan: str | None = None
    tool_calls: list[Call] | None = None
    citations: list[dict[str, Any]] | None = None


class Result(_Strict, tag_field="role", tag="tool"):
    tool_call_id: str
    content: str | list[Text | Found]


class Function(_Strict):
    name: str
    parameters: dict[str, Any]
    description: str | None = None


class Tool(_Strict):
    type: Literal["function"]
    function: Function


class Format(_Strict):
    type: Literal["text", "json_object"]
    json_schema: dict[str, Any] | None = None


class Cited(_Strict):
    mode: Literal["ENABLED", "DISABLED", "FAST", "ACCURATE", "OFF"] | None = None


class Thinking(_Strict):
    type: Literal["enabled", "disabled"]
    token_budget: int | None = None


class Chat(_Strict):
    model: str
    stream: bool
    messages: list[System | User | Assistant | Result]
    tools: list[Tool] | None = None
    strict_tools: bool | None = None
    documents: list[str | Document] | None = None
    citation_options: Cited | None = None
    response_format: Format | None = None
    safety_mode: Literal["CONTEXTUAL", "STRICT", "OFF"] | None = None
    max_tokens: int | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    k: int | None = None
    p: float | None = None
    logprobs: bool | None = None
    tool_choice: Literal["REQUIRED", "NONE"] | None = None
    thinking: Thinking | None = None
    priority: int | None = None


class Embed(_Strict):
    model: str
    input_type: Literal["search_document", "search_query", "classification", "clustering", "image"]
    texts: list[str]
    embedding_types: list[Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]]
    truncate: Literal["NONE", "START", "END"] | None = None
    output_dimension: Literal[256, 512, 1024, 1536] | None = None
    max_tokens: int | None = None
    priority: int | None = None


class Rerank(_Strict):
    model: str
    query: str
    documents: list[str]
    top_n: int | None = None
    max_tokens_per_doc: int | None = None
    priority: int | None = None


def checked(body: bytes) -> Chat:
    """`body` as the API reads it. Raises what it would answer with 400 or 422."""
    asked = msgspec.json.decode(body, type=Chat)
    assert asked.messages, "messages is empty"
    _check_numbers(asked)
    if asked.tool_choice == "REQUIRED":
        assert asked.tools, "tool_choice needs tools"
    if asked.response_format is not None and asked.response_format.type == "json_object":
        assert not asked.tools, "response_format is not supported with tools"
        assert not asked.documents, "response_format is not supported with RAG"
    waiting: set[str] = set()
    for i, turn in enumerate(asked.messages):
        assert i == 0 or not isinstance(turn, System), "system turn must be the first in the list"
        if isinstance(turn, Assistant):
            said = turn.content or turn.tool_plan
            assert said or turn.tool_calls, "message must not be empty in a turn"
            for call in turn.tool_calls or ():
                assert isinstance(json.loads(call.function.arguments), dict)
                waiting.add(call.id)
        elif isinstance(turn, Result):
            assert turn.tool_call_id in waiting, "a result without its call"
        else:
            assert turn.content, "message must not be empty in a turn"
    return asked


def _check_numbers(asked: Chat) -> None:
    assert asked.temperature is None or asked.temperature >= 0
    assert asked.p is None or 0.01 <= asked.p <= 0.99
    assert asked.k is None or 0 <= asked.k <= 500
    assert asked.seed is None or asked.seed >= 0
    assert len(asked.stop_sequences or ()) <= 5
    for penalty in (asked.frequency_penalty, asked.presence_penalty):
        assert penalty is None or 0 <= penalty <= 1
    if asked.thinking is not None and asked.thinking.token_budget is not None:
        assert asked.thinking.token_budget > 0


class Cohere:
    """An upstream: answers a chat with `events`, or with the body that they add up to."""

    def __init__(self, *events: dict[str, Any], body: dict[str, Any] | None = None) -> None:
        self.events: Sequence[dict[str, Any]] = events
        self.body = body
        self.asked: list[Chat] = []
        self.embeds: list[Embed] = []
        self.reranks: list[Rerank] = []

    async def __call__(self, seen: Seen) -> None:
        assert seen.headers["authorization"].startswith("Bearer ")
        try:
            if seen.target == "/v2/embed":
                await self._embed(seen)
            elif seen.target == "/v2/rerank":
                await self._rerank(seen)
            else:
                assert seen.target == "/v2/chat"
                await self._chat(seen, checked(seen.body))
        except (msgspec.ValidationError, AssertionError) as exc:
            await reply(422, message(f"invalid request: {exc}"))(seen)
            raise AssertionError(f"refused: {exc} in {seen.body!r}") from exc

    async def _chat(self, seen: Seen, asked: Chat) -> None:
        self.asked.append(asked)
        if not asked.stream:
            assert self.body is not None
            await reply(200, json.dumps(self.body).encode())(seen)
            return
        await seen.head()
        for one in self.events:
            await seen.chunk(framed(one))
        await seen.end()

    async def _embed(self, seen: Seen) -> None:
        asked = msgspec.json.decode(seen.body, type=Embed)
        assert 1 <= len(asked.texts) <= 96
        first = sum(len(one.texts) for one in self.embeds)
        self.embeds.append(asked)
        vectors = [[float(first + i), 0.5] for i in range(len(asked.texts))]
        meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 5.0}}
        told = {"id": "e1", "texts": asked.texts, "embeddings": {"float": vectors}, "meta": meta}
        body = {**told, "response_type": "embeddings_by_type"}
        await reply(200, json.dumps(body).encode())(seen)

    async def _rerank(self, seen: Seen) -> None:
        asked = msgspec.json.decode(seen.body, type=Rerank)
        self.reranks.append(asked)
        order = list(reversed(range(len(asked.documents))))[: asked.top_n]
        results = [{"index": i, "relevance_score": 0.5 + i / 100} for i in order]
        meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
        body = {"id": "r1", "results": results, "meta": meta}
        await reply(200, json.dumps(body).encode())(seen)


def message(text: str) -> bytes:
    """An error as a body."""
    return json.dumps({"id": "8c2", "message": text}).encode()


def framed(event: dict[str, Any]) -> bytes:
    """One event as it is on the wire, with its name before it."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def start() -> dict[str, Any]:
    """How a stream begins."""
    empty: dict[str, Any] = {"content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    delta = {"message": {"role": "assistant", **empty}}
    return {"id": "m1", "type": "message-start", "delta": delta}


def block(index: int, kind: str, *pieces: str) -> list[dict[str, Any]]:
    """A text or a thought in pieces."""

    def told(name: str, **content: str) -> dict[str, Any]:
        return {"type": name, "index": index, "delta": {"message": {"content": content}}}

    first = told("content-start", type=kind, **{kind: ""})
    last = {"type": "content-end", "index": index}
    return [first, *(told("content-delta", **{kind: piece}) for piece in pieces), last]


def plan(*pieces: str) -> list[dict[str, Any]]:
    """What the model says before it calls."""
    return [
        {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": piece}}} for piece in pieces
    ]


def call(index: int, id: str, name: str, *pieces: str) -> list[dict[str, Any]]:
    """A call in pieces."""

    def told(event: str, **fields: Any) -> dict[str, Any]:
        return {"type": event, "index": index, "delta": {"message": {"tool_calls": fields}}}

    named = {"name": name, "arguments": ""}
    first = told("tool-call-start", id=id, type="function", function=named)
    argued = [told("tool-call-delta", function={"arguments": piece}) for piece in pieces]
    return [first, *argued, {"type": "tool-call-end", "index": index}]


USAGE: dict[str, Any] = {
    "billed_units": {"input_tokens": 8.0, "output_tokens": 5.0},
    "tokens": {"input_tokens": 900.0, "output_tokens": 7.0},
    "cached_tokens": 3.0,
}


def end(reason: str | None = "COMPLETE", **fields: Any) -> dict[str, Any]:
    """How a stream ends."""
    told = {} if reason is None else {"finish_reason": reason}
    return {"type": "message-end", "delta": {**told, "usage": USAGE, **fields}}


def answer(reason: str = "COMPLETE", **fields: Any) -> dict[str, Any]:
    """A whole answer."""
    return {
        "id": "m1",
        "finish_reason": reason,
        "message": {"role": "assistant", **fields},
        "usage": USAGE,
    }


CITATION: dict[str, Any] = {
    "start": 0,
    "end": 3,
    "text": "Let",
    "sources": [{"type": "document", "id": "0", "document": {"text": "let it be"}}],
    "type": "TEXT_CONTENT",
}
CALLS: tuple[dict[str, Any], ...] = (
    start(),
    *block(0, "thinking", "h", "m"),
    *plan("Let me ", "see. 日本"),
    *call(0, "c1", "add", '{"a":', " 1}"),
    *call(1, "c2", "sub", "{}"),
    end("TOOL_CALL"),
)
"""A stream with a thought, a plan and two calls."""
CALLED = answer(
    "TOOL_CALL",
    content=[{"type": "thinking", "thinking": "hm"}],
    tool_plan="Let me see. 日本",
    tool_calls=[
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
    ],
)
SAID: tuple[dict[str, Any], ...] = (
    start(),
    *block(0, "text", "It ", "is 3."),
    end("COMPLETE"),
)
WHOLE = answer(content=[{"type": "text", "text": "It is 3."}])
