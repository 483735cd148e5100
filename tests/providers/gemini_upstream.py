"""Gemini's API for tests, strict about what it receives: an unknown or mistyped field is refused.

The fields are those of Google's public reference of `v1beta` (ai.google.dev/api/generate-content,
/api/caching, /api/embeddings), written down here by themselves, not taken from the code under test.
`checked` reads a request as that API would; `Gemini` answers with what it is told to.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from .upstream import Seen, event, reply


class _Strict(Struct, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    pass


class Blob(_Strict):
    mime_type: str
    data: str


class FileRef(_Strict):
    file_uri: str
    mime_type: str | None = None


class FunctionCall(_Strict):
    name: str
    args: dict[str, Any] | None = None
    id: str | None = None


class ResponsePart(_Strict):
    inline_data: Blob | None = None
    file_data: FileRef | None = None


class FunctionResponse(_Strict):
    name: str
    response: dict[str, Any]
    id: str | None = None
    parts: list[ResponsePart] | None = None


class Code(_Strict):
    language: str
    code: str


class Part(_Strict):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    inline_data: Blob | None = None
    file_data: FileRef | None = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None
    executable_code: Code | None = None


class Content(_Strict):
    parts: list[Part]
    role: Literal["user", "model"] | None = None


class Schema(_Strict):
    type: Literal["STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL"] | None = None
    format: str | None = None
    title: str | None = None
    description: str | None = None
    nullable: bool | None = None
    enum: list[str] | None = None
    max_items: int | str | None = None
    min_items: int | str | None = None
    properties: dict[str, Schema] | None = None
    required: list[str] | None = None
    min_properties: int | str | None = None
    max_properties: int | str | None = None
    min_length: int | str | None = None
    max_length: int | str | None = None
    pattern: str | None = None
    example: Any = None
    any_of: list[Schema] | None = None
    property_ordering: list[str] | None = None
    default: Any = None
    items: Schema | None = None
    minimum: float | None = None
    maximum: float | None = None


class Declaration(_Strict):
    name: str
    description: str | None = None
    parameters: Schema | None = None
    parameters_json_schema: dict[str, Any] | None = None


class Empty(_Strict):
    pass


class Tool(_Strict):
    function_declarations: list[Declaration] | None = None
    google_search: Empty | None = None
    code_execution: Empty | None = None


class Calling(_Strict):
    mode: Literal["AUTO", "ANY", "NONE", "VALIDATED"] | None = None
    allowed_function_names: list[str] | None = None


class ToolConfig(_Strict):
    function_calling_config: Calling | None = None


class Thinking(_Strict):
    include_thoughts: bool | None = None
    thinking_budget: int | None = None
    thinking_level: Literal["MINIMAL", "LOW", "MEDIUM", "HIGH", "XHIGH"] | None = None


class Config(_Strict):
    temperature: float | None = None
    top_p: float | None = None
    top_k: float | None = None
    max_output_tokens: int | None = None
    stop_sequences: list[str] | None = None
    candidate_count: int | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_mime_type: str | None = None
    response_schema: Schema | None = None
    response_json_schema: dict[str, Any] | None = None
    response_logprobs: bool | None = None
    logprobs: int | None = None
    thinking_config: Thinking | None = None
    response_modalities: list[str] | None = None


class Safety(_Strict):
    category: str
    threshold: str


class Request(_Strict):
    contents: list[Content]
    system_instruction: Content | None = None
    tools: list[Tool] | None = None
    tool_config: ToolConfig | None = None
    generation_config: Config | None = None
    safety_settings: list[Safety] | None = None
    cached_content: str | None = None
    service_tier: Literal["standard", "flex", "priority"] | None = None


class Counted(Request, kw_only=True):
    model: str


class CountAll(_Strict):
    generate_content_request: Counted


class EmbedOne(_Strict):
    model: str
    content: Content
    task_type: str | None = None
    title: str | None = None
    output_dimensionality: int | None = None


class EmbedAll(_Strict):
    requests: list[EmbedOne]


def checked(body: bytes, model: str = "gemini-3-pro") -> Request:
    """`body` as the API reads it. Raises what it would answer with 400."""
    asked = msgspec.convert(_respelled(json.loads(body)), Request)
    assert asked.contents, "contents is not specified"
    config = asked.generation_config or Config()
    assert len(config.stop_sequences or ()) <= 5, "at most five stop sequences"
    assert config.temperature is None or 0 <= config.temperature <= 2
    assert config.response_schema is None or config.response_json_schema is None
    if config.response_schema or config.response_json_schema:
        assert config.response_mime_type == "application/json"
    if config.logprobs is not None:
        assert config.response_logprobs
        assert 1 <= config.logprobs <= 20
    if config.thinking_config is not None:
        think = config.thinking_config
        assert think.thinking_budget is None or think.thinking_level is None
    _check_turns(asked.contents, model)
    for content in (*asked.contents, *filter(None, [asked.system_instruction])):
        for part in content.parts:
            _check_part(part)
    calling = asked.tool_config.function_calling_config if asked.tool_config else None
    if calling is not None and calling.allowed_function_names:
        names = {d.name for tool in asked.tools or () for d in tool.function_declarations or ()}
        assert calling.mode in ("ANY", "VALIDATED")
        assert set(calling.allowed_function_names) <= names
    return asked


_OWN = frozenset(("args", "response", "parametersJsonSchema", "responseJsonSchema", "properties"))


def _respelled(value: Any) -> Any:
    """Names in snake_case mean the same there, and Google's own client sends some."""
    if isinstance(value, list):
        return [_respelled(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for name, one in value.items():
        first, *rest = name.split("_")
        spelled = first + "".join(word.capitalize() for word in rest)
        assert spelled not in found, f"{name} came twice"
        found[spelled] = one if spelled in _OWN else _respelled(one)
    return found


def _check_turns(contents: Sequence[Content], model: str) -> None:
    before: Content | None = None
    for content in contents:
        calls = [part for part in content.parts if part.function_call]
        answers = [part.function_response for part in content.parts if part.function_response]
        if calls:
            assert content.role == "model"
            assert before is not None, "a call comes after a turn of the user"
            assert before.role != "model"
            if model.startswith("gemini-3"):
                assert calls[0].thought_signature, "missing a thought_signature"
        if answers:
            assert before is not None
            asked = [part.function_call for part in before.parts if part.function_call]
            assert len(asked) == len(answers), "as many responses as calls"
            assert sorted(c.name for c in asked) == sorted(a.name for a in answers)
            assert {c.id for c in asked} == {a.id for a in answers}
        before = content


def _check_part(part: Part) -> None:
    data = [
        name
        for name in ("text", "inline_data", "file_data", "function_call", "function_response")
        if getattr(part, name) is not None
    ]
    assert len(data) == 1 or part.executable_code, f"a part is one thing, not {data}"
    assert part.text != "" or part.thought_signature, "empty text"
    if part.inline_data is not None:
        base64.b64decode(part.inline_data.data, validate=True)
    if part.thought_signature is not None and part.thought_signature[:4] != "skip":
        base64.b64decode(part.thought_signature, validate=True)


class Gemini:
    """An upstream: answers `generateContent` with `chunks`, and notes what it was asked.

    A stream gets the chunks as events; otherwise the one that is given is the body.
    """

    def __init__(self, *chunks: dict[str, Any], key: str | None = None) -> None:
        self.chunks = chunks
        self.key = key
        self.asked: list[Request] = []
        self.embeds: list[EmbedAll] = []
        self.model = ""

    async def __call__(self, seen: Seen) -> None:
        path, _, query = seen.target.partition("?")
        assert path.startswith("/v1beta/models/"), path
        self.model, _, verb = unquote(path).removeprefix("/v1beta/models/").rpartition(":")
        assert "authorization" not in seen.headers
        assert seen.headers["x-goog-api-key"]
        assert self.key in (None, seen.headers["x-goog-api-key"])
        try:
            if verb == "batchEmbedContents":
                await self._embed(seen)
                return
            if verb == "countTokens":
                await self._count(seen)
                return
            asked = checked(seen.body, self.model)
        except (msgspec.ValidationError, AssertionError) as exc:
            await reply(400, status(400, "INVALID_ARGUMENT", str(exc)))(seen)
            raise AssertionError(f"refused: {exc} in {seen.body!r}") from exc
        self.asked.append(asked)
        if verb == "generateContent":
            assert query == ""
            await reply(200, json.dumps(self.chunks[0]).encode())(seen)
            return
        assert (verb, query) == ("streamGenerateContent", "alt=sse")
        await seen.head()
        for chunk in self.chunks:
            await seen.chunk(event(chunk).replace(b"\n", b"\r\n"))
        await seen.end()

    async def _count(self, seen: Seen) -> None:
        value = _respelled(json.loads(seen.body))
        asked = msgspec.convert(value, CountAll).generate_content_request
        assert asked.model == f"models/{self.model}"
        self.asked.append(asked)
        await reply(200, b'{"totalTokens":42}')(seen)

    async def _embed(self, seen: Seen) -> None:
        asked = msgspec.json.decode(seen.body, type=EmbedAll)
        assert {one.model for one in asked.requests} == {f"models/{self.model}"}
        self.embeds.append(asked)
        vectors = [{"values": [float(i), 0.5]} for i in range(len(asked.requests))]
        told = {"embeddings": vectors, "usageMetadata": {"promptTokenCount": 5}}
        await reply(200, json.dumps(told).encode())(seen)


def status(code: int, name: str, message: str, *details: dict[str, Any]) -> bytes:
    """A `google.rpc.Status` as a body."""
    error: dict[str, Any] = {"code": code, "message": message, "status": name}
    if details:
        error["details"] = list(details)
    return json.dumps({"error": error}).encode()


def chunk(
    *parts: dict[str, Any], finish: str | None = None, index: int | None = None, **fields: Any
) -> dict[str, Any]:
    """One `GenerateContentResponse`."""
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}}
    if finish is not None:
        candidate["finishReason"] = finish
    if index is not None:
        candidate["index"] = index
    return {
        "candidates": [candidate],
        "usageMetadata": USAGE,
        "modelVersion": "gemini-3-pro",
        "responseId": "r1",
        **fields,
    }


USAGE = {
    "promptTokenCount": 8,
    "cachedContentTokenCount": 3,
    "candidatesTokenCount": 5,
    "thoughtsTokenCount": 4,
    "totalTokenCount": 17,
}
SIGNATURE = base64.b64encode(b"what google thought").decode()
CALLS = (
    chunk({"text": "hm", "thought": True}),
    chunk({"text": "Let me "}),
    chunk({"text": "see. 日本"}),
    chunk(
        {
            "functionCall": {"name": "add", "args": {"a": 1}, "id": "f1"},
            "thoughtSignature": SIGNATURE,
        },
        {"functionCall": {"name": "sub", "args": {}, "id": "f2"}},
    ),
    chunk({"text": ""}, finish="STOP"),
)
"""A stream with a thought, a text and two calls."""
