"""Gemini's API: bytes to `Request`, `Delta`s to bytes. Pure, no sockets.

Knows: `generateContent`, `streamGenerateContent` with and without SSE, `countTokens`, their errors.
Does not know: who answers, HTTP, embeddings (`gemini_embed.py`).

The model's name is part of the path there, so `decode` is told it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from math import isfinite
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadRequest
from llm_runner_router.types import (
    Delta,
    Reasoning,
    Request,
    RequestWire,
    ResponseFormat,
    Sampling,
    TokenizeRequest,
    Tool,
)

from .base import Reply
from .codec import (
    MAX_STOPS,
    Writer,
    check_model,
    events,
    extra,
    limit,
    names_of_fallbacks,
    parse,
    raw_fields,
    relayed,
    whole,
)
from .gemini_read import Content, conversation, read
from .gemini_schema import from_google
from .gemini_write import (
    DIALECT,
    ChunkWriter,
    Events,
    Frames,
    Listed,
    Relay,
    error,
    list_error,
    response,
    stream_error,
)

__all__ = ["DIALECT", "LIST", "decode", "decode_count", "encode", "encode_count", "error",
           "stream_error"]  # fmt: skip

MAX_CANDIDATES = 128
MAX_LOGPROBS = 20
_JSON = "application/json"


class _Declaration(Struct, frozen=True, rename="camel"):
    name: str
    description: str | None = None
    parameters: Any = None
    parameters_json_schema: Any = None


class _Calling(Struct, frozen=True, rename="camel"):
    mode: str | None = None
    allowed_function_names: list[str] | None = None


class _ToolConfig(Struct, frozen=True, rename="camel"):
    function_calling_config: _Calling | None = None


class _Thinking(Struct, frozen=True, rename="camel"):
    include_thoughts: bool | None = None
    thinking_budget: int | None = None
    thinking_level: str | None = None


class _Config(Struct, frozen=True, rename="camel"):
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
    response_schema: Any = None
    response_json_schema: Any = None
    response_logprobs: bool | None = None
    logprobs: int | None = None
    thinking_config: _Thinking | None = None


class _Asked(Struct, frozen=True, rename="camel", kw_only=True):
    """What both routes take."""

    contents: list[Content] = []
    system_instruction: Content | None = None
    tools: list[dict[str, Raw]] | None = None
    tool_config: _ToolConfig | None = None
    generation_config: _Config | None = None


class _Body(_Asked, frozen=True, rename="camel", kw_only=True):
    service_tier: str | None = None
    model: str | None = None
    fallbacks: list[str] | None = None
    cache: bool | None = None
    strict: bool | None = None


class _Count(_Asked, frozen=True, rename="camel", kw_only=True):
    generate_content_request: _Asked | None = None


_decoder = msgspec.json.Decoder(_Body)
_count_decoder = msgspec.json.Decoder(_Count)
_fields_of = msgspec.json.Decoder(dict[str, Raw])
_declarations = msgspec.json.Decoder(list[_Declaration])
_KNOWN = frozenset(_Body.__struct_encode_fields__)
_CONFIG = frozenset(_Config.__struct_encode_fields__)
_NOTHING = (b"null", b"[]", b"{}", b'["TEXT"]', b'["text"]')
"""Values of fields without a name in `Request` that ask for nothing."""


def decode(body: bytes, model: str, *, stream: bool) -> Request:
    """Read a request for content.

    Args:
        model: the name in the path, without `models/`.
        stream: the path asks for a stream.

    Raises:
        BadRequest: malformed, of wrong types, or contradictory; `param` says where.
    """
    check_model(model)
    asked, usual = read(_decoder, body)
    fields = raw_fields(body)
    config = asked.generation_config or _Config()
    tools, choice = _tool_choice(asked, _tools(asked))
    return Request(
        model=model,
        messages=conversation(asked.system_instruction, asked.contents),
        tools=tools,
        tool_choice=choice,
        response_format=_format(config),
        sampling=_sampling(config),
        stream=stream,
        include_usage=True,
        reasoning=_reasoning(config.thinking_config),
        service_tier=_tier(asked.service_tier),
        strict=asked.strict is True,
        fallbacks=names_of_fallbacks(asked.fallbacks),
        cache=asked.cache is True,
        extra=_extra(fields if usual is body else parse(_fields_of, usual), config),
        wire=RequestWire(DIALECT, fields),
    )


def decode_count(body: bytes, model: str) -> TokenizeRequest:
    """Read a request for the number of tokens of a prompt.

    Raises:
        BadRequest: malformed or of wrong types; `param` says where.
    """
    check_model(model)
    asked, _ = read(_count_decoder, body)
    inner = asked.generate_content_request or asked
    messages = conversation(inner.system_instruction, inner.contents)
    return TokenizeRequest(model=model, messages=messages, tools=_tools(inner))


def encode_count(tokens: int) -> bytes:
    """`{"totalTokens": n}`."""
    return msgspec.json.encode({"totalTokens": tokens})


def _extra(fields: dict[str, Raw], config: _Config) -> dict[str, Raw]:
    """What has no name in `Request`; fields of `generationConfig` with their path."""
    found = extra(fields, _KNOWN)
    if "generationConfig" in fields and bytes(fields["generationConfig"]) != b"null":
        inner = _fields_of.decode(fields["generationConfig"])
        for name, value in extra(inner, _CONFIG).items():
            found[f"generationConfig.{name}"] = value
    if config.response_mime_type not in (None, _JSON, "text/plain"):
        kind = msgspec.json.encode(config.response_mime_type)
        found["generationConfig.responseMimeType"] = Raw(kind)
    return {name: value for name, value in found.items() if bytes(value) not in _NOTHING}


# ---------------------------------------------------------------- how to answer


def _tools(asked: _Asked) -> tuple[Tool, ...]:
    found = []
    for i, kinds in enumerate(asked.tools or ()):
        for kind, value in kinds.items():
            if kind != "functionDeclarations":
                found.append(Tool(kind, kind=kind))
                continue
            path = f"tools[{i}].functionDeclarations"
            declared = parse(_declarations, bytes(value))
            found += [_tool(one, f"{path}[{k}]") for k, one in enumerate(declared)]
    return tuple(found)


def _tool(told: _Declaration, path: str) -> Tool:
    if not told.name:
        raise BadRequest(f"'{path}.name' is empty", param=f"{path}.name")
    schema, where = told.parameters_json_schema, f"{path}.parametersJsonSchema"
    if schema is None and told.parameters is not None:
        schema, where = from_google(told.parameters), f"{path}.parameters"
    if schema is not None and not isinstance(schema, dict):
        raise BadRequest(f"{where!r} must be an object", param=where, code="invalid_type")
    raw = None if schema is None else Raw(msgspec.json.encode(schema))
    return Tool(told.name, told.description, raw)


def _tool_choice(asked: _Asked, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], str | None]:
    """The tools that may be called, and how; a choice among several is one of fewer tools."""
    path = "toolConfig.functionCallingConfig"
    told = asked.tool_config.function_calling_config if asked.tool_config is not None else None
    if told is None or told.mode in (None, "MODE_UNSPECIFIED"):
        return tools, None
    mode = {"AUTO": "auto", "ANY": "required", "NONE": "none", "VALIDATED": "auto"}.get(told.mode)
    if mode is None:
        raise BadRequest(
            f"'{path}.mode' must be AUTO, ANY, NONE or VALIDATED, not {told.mode[:40]!r}",
            param=f"{path}.mode",
        )
    allowed = told.allowed_function_names or ()
    for name in allowed:
        if all(tool.name != name for tool in tools):
            known = ", ".join(tool.name for tool in tools) or "none"
            raise BadRequest(
                f"'{path}.allowedFunctionNames' has {name[:80]!r}, which is not among the tools:"
                f" {known}",
                param=f"{path}.allowedFunctionNames",
            )
    if mode == "required" and not tools:
        raise BadRequest(f"'{path}.mode' is ANY without 'tools'", param=f"{path}.mode")
    if mode == "required" and len(allowed) == 1:
        return tools, f"function:{allowed[0]}"
    if allowed and mode != "none":
        tools = tuple(tool for tool in tools if tool.kind is not None or tool.name in allowed)
    if told.mode == "VALIDATED":
        strict = msgspec.structs.replace
        tools = tuple(t if t.kind is not None else strict(t, strict=True) for t in tools)
    return tools, mode


def _format(config: _Config) -> ResponseFormat | None:
    schema, name = config.response_json_schema, "responseJsonSchema"
    if schema is None and config.response_schema is not None:
        schema, name = from_google(config.response_schema), "responseSchema"
    if config.response_mime_type not in (None, _JSON):
        return None
    if schema is None:
        return ResponseFormat("json_object") if config.response_mime_type == _JSON else None
    if not isinstance(schema, dict):
        param = f"generationConfig.{name}"
        raise BadRequest(f"{param!r} must be an object", param=param, code="invalid_type")
    return ResponseFormat("json_schema", Raw(msgspec.json.encode(schema)), strict=True)


_RANGES = (
    ("temperature", "temperature", 0, 2),
    ("top_p", "topP", 0, 1),
    ("top_k", "topK", 0, 2**31),
    ("presence_penalty", "presencePenalty", -2, 2),
    ("frequency_penalty", "frequencyPenalty", -2, 2),
    ("candidate_count", "candidateCount", 1, MAX_CANDIDATES),
    ("logprobs", "logprobs", 0, MAX_LOGPROBS),
)


def _sampling(config: _Config) -> Sampling:
    for name, theirs, low, high in _RANGES:
        value = getattr(config, name)
        if value is not None and not (low <= value <= high and isfinite(value)):
            param = f"generationConfig.{theirs}"
            raise BadRequest(
                f"{param!r} must be between {low} and {high}, not {value}",
                param=param,
                code="invalid_value",
            )
    limit("generationConfig.maxOutputTokens", config.max_output_tokens, 1)
    stops = tuple(config.stop_sequences or ())
    if len(stops) > MAX_STOPS or not all(stops):
        param = "generationConfig.stopSequences"
        raise BadRequest(
            f"{param!r} takes up to {MAX_STOPS} texts, none of them empty", param=param
        )
    return Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=None if config.top_k is None else round(config.top_k),
        max_tokens=config.max_output_tokens,
        stop=stops,
        seed=config.seed,
        presence_penalty=config.presence_penalty,
        frequency_penalty=config.frequency_penalty,
        n=config.candidate_count or 1,
        logprobs=config.response_logprobs is True,
        top_logprobs=config.logprobs if config.response_logprobs else None,
    )


def _reasoning(wanted: _Thinking | None) -> Reasoning | None:
    if wanted is None:
        return None
    level = wanted.thinking_level
    effort = None if level in (None, "THINKING_LEVEL_UNSPECIFIED") else str(level).lower()
    budget = wanted.thinking_budget
    if budget is not None and budget < 0:
        budget = None  # as much as the model likes
    return Reasoning(effort, budget, wanted.include_thoughts is True)


def _tier(tier: str | None) -> str | None:
    name = (tier or "").lower()
    return {"": None, "unspecified": None, "standard": "default"}.get(name, name)


# ---------------------------------------------------------------- answers


def encode(deltas: AsyncIterator[Delta], request: Request, reply: Reply) -> AsyncIterator[bytes]:
    """One JSON body, or SSE events; chunks and bodies of this same dialect pass through untouched.

    Raises:
        StreamBroken: the deltas ended without a `finish`.
        RunnerError: whatever the deltas raise.
    """
    return _encode(deltas, request, reply, Events())


class _List:
    """The codec of a stream without SSE: a JSON list that grows."""

    error = staticmethod(error)
    stream_error = staticmethod(list_error)

    @staticmethod
    def encode(
        deltas: AsyncIterator[Delta], request: Request, reply: Reply
    ) -> AsyncIterator[bytes]:
        """As `encode` does, in one list."""
        return _encode(deltas, request, reply, Listed())


LIST = _List()
"""What answers `streamGenerateContent` without `alt=sse`."""


def _encode(
    deltas: AsyncIterator[Delta], request: Request, reply: Reply, frames: Frames
) -> AsyncIterator[bytes]:
    if not request.stream:
        return whole(deltas, request, reply, DIALECT, response)

    def choose(first: Delta) -> Writer:
        if relayed(first, DIALECT):
            return Relay(frames)
        return ChunkWriter(request, reply, frames)

    return events(deltas, reply, choose)
