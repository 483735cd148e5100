"""Bedrock's Converse API: bytes to `Request`, `Delta`s to bytes. Pure, no sockets.

Knows: `converse`, `converse-stream`, `count-tokens`, their errors. Does not know: who answers,
HTTP.

The model's name is part of the path there, so `decode` is told it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from math import isfinite
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.deltas import Answer
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
from .bedrock_read import Block, CachePoint, Turn, conversation
from .bedrock_write import DIALECT, EventWriter, Relay, count, error, message, stream_error
from .codec import (
    MAX_STOPS,
    Writer,
    check_model,
    events,
    extra,
    given,
    limit,
    names_of_fallbacks,
    parse,
    raw_fields,
    relayed,
    whole,
)

__all__ = ["DIALECT", "count", "decode", "decode_count", "encode", "error", "stream_error"]


class _Inference(Struct, frozen=True, rename="camel"):
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop_sequences: list[str] | None = None


class _Schema(Struct, frozen=True):
    json: dict[str, Raw]


class _Spec(Struct, frozen=True, rename="camel"):
    name: str
    input_schema: _Schema
    description: str | None = None
    strict: bool | None = None


class _System(Struct, frozen=True):
    name: str


class _Tool(Struct, frozen=True, rename="camel"):
    tool_spec: _Spec | None = None
    system_tool: _System | None = None
    cache_point: CachePoint | None = None


class _Choice(Struct, frozen=True):
    auto: dict[str, Raw] | None = None
    any: dict[str, Raw] | None = None
    tool: _System | None = None


class _ToolConfig(Struct, frozen=True, rename="camel"):
    tools: list[_Tool]
    tool_choice: _Choice | None = None


class _JsonSchema(Struct, frozen=True):
    schema: str
    name: str | None = None


class _Structure(Struct, frozen=True, rename="camel"):
    json_schema: _JsonSchema | None = None


class _Format(Struct, frozen=True):
    type: str
    structure: _Structure


class _Output(Struct, frozen=True, rename="camel"):
    text_format: _Format | None = None
    effort: str | None = None


class _Tier(Struct, frozen=True):
    type: str


class _Asked(Struct, frozen=True, rename="camel", kw_only=True):
    """What both routes take."""

    messages: list[Turn]
    system: list[Block] | None = None
    tool_config: _ToolConfig | None = None
    additional_model_request_fields: dict[str, Any] | None = None


class _Body(_Asked, frozen=True, rename="camel", kw_only=True):
    inference_config: _Inference | None = None
    output_config: _Output | None = None
    service_tier: _Tier | None = None
    request_metadata: dict[str, str] | None = None
    fallbacks: list[str] | None = None
    cache: bool | None = None
    strict: bool | None = None


class _Input(Struct, frozen=True):
    converse: _Asked | None = None


class _Count(Struct, frozen=True):
    input: _Input


_decoder = msgspec.json.Decoder(_Body)
_count_decoder = msgspec.json.Decoder(_Count)
_object = msgspec.json.Decoder(dict[str, Raw])
_KNOWN = frozenset(_Body.__struct_encode_fields__)
_MORE = "additionalModelRequestFields"
_READ = frozenset(("top_k", "thinking", "reasoning_effort", "inferenceConfig"))
"""Fields of `additionalModelRequestFields` that have a name in `Request`."""
_PATHS = "additionalModelResponseFieldPaths"
_STOPPED = b'["/stop_sequence"]'
"""What is told anyway."""


def decode(body: bytes, model: str, *, stream: bool) -> Request:
    """Read a request for an answer.

    Args:
        model: the name in the path.
        stream: the path asks for a stream.

    Raises:
        BadRequest: malformed, of wrong types, or contradictory; `param` says where.
    """
    check_model(model)
    asked = parse(_decoder, body)
    fields = raw_fields(body)
    tools = _tools(asked)
    more = asked.additional_model_request_fields or {}
    metadata = asked.request_metadata or {}
    return Request(
        model=model,
        messages=tuple(conversation(asked.system, asked.messages)),
        tools=tools,
        tool_choice=_tool_choice(asked, tools),
        response_format=_format(asked.output_config),
        sampling=_sampling(asked.inference_config or _Inference(), more),
        stream=stream,
        include_usage=True,
        reasoning=_reasoning(asked.output_config, more),
        service_tier=None if asked.service_tier is None else asked.service_tier.type,
        user=metadata.get("user_id"),
        strict=asked.strict is True,
        fallbacks=names_of_fallbacks(asked.fallbacks),
        cache=asked.cache is True,
        extra=_extra(fields, metadata, more),
        wire=RequestWire(DIALECT, fields),
    )


def decode_count(body: bytes, model: str) -> TokenizeRequest:
    """Read a request for the number of tokens of a prompt.

    Raises:
        BadRequest: malformed or of wrong types; `param` says where.
    """
    check_model(model)
    asked = given(parse(_count_decoder, body).input.converse, "input.converse")
    messages = tuple(conversation(asked.system, asked.messages))
    return TokenizeRequest(model=model, messages=messages, tools=_tools(asked))


def _extra(
    fields: dict[str, Raw], metadata: dict[str, str], more: dict[str, Any]
) -> dict[str, Raw]:
    """What has no name in `Request`; fields of a model's own with their path."""
    found = extra(fields, _KNOWN)
    if bytes(found.get(_PATHS, b"")).replace(b" ", b"") in (b"[]", _STOPPED):
        del found[_PATHS]
    if metadata.keys() - {"user_id"}:
        found["requestMetadata"] = fields["requestMetadata"]
    for name in more.keys() - _READ:
        found[f"{_MORE}.{name}"] = Raw(msgspec.json.encode(more[name]))
    return found


# ---------------------------------------------------------------- how to answer


def _tools(asked: _Asked) -> tuple[Tool, ...]:
    found: list[Tool] = []
    for i, tool in enumerate(asked.tool_config.tools if asked.tool_config is not None else ()):
        if tool.tool_spec is not None:
            spec = tool.tool_spec
            name = given(spec.name, f"toolConfig.tools[{i}].toolSpec.name")
            schema = Raw(msgspec.json.encode(spec.input_schema.json))
            found.append(Tool(name, spec.description, schema, spec.strict))
        elif tool.cache_point is not None:
            if found:
                control = tool.cache_point.control
                found[-1] = msgspec.structs.replace(found[-1], cache_control=control)
        else:
            name = "" if tool.system_tool is None else tool.system_tool.name
            found.append(Tool(name, kind=name or "a tool of Bedrock's"))
    return tuple(found)


def _tool_choice(asked: _Asked, tools: tuple[Tool, ...]) -> str | None:
    choice = asked.tool_config.tool_choice if asked.tool_config is not None else None
    if choice is None:
        return None
    if choice.tool is not None:
        name = choice.tool.name
        if all(tool.name != name for tool in tools):
            known = ", ".join(tool.name for tool in tools) or "none"
            param = "toolConfig.toolChoice.tool.name"
            raise BadRequest(
                f"{param!r} is {name[:80]!r}, which is not among the tools: {known}", param=param
            )
        return f"function:{name}"
    if choice.any is not None:
        return "required"
    return None if choice.auto is None else "auto"


def _format(output: _Output | None) -> ResponseFormat | None:
    wanted = output.text_format if output is not None else None
    if wanted is None:
        return None
    path = "outputConfig.textFormat"
    if wanted.type != "json_schema":
        raise BadRequest(f"'{path}.type' must be json_schema", param=f"{path}.type")
    told = given(wanted.structure.json_schema, f"{path}.structure.jsonSchema")
    path = f"{path}.structure.jsonSchema.schema"
    try:
        _object.decode(told.schema)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise BadRequest(f"{path!r} is no JSON Schema: {exc}", param=path) from exc
    return ResponseFormat("json_schema", Raw(told.schema.encode()), told.name, strict=True)


def _sampling(config: _Inference, more: dict[str, Any]) -> Sampling:
    for name, theirs in (("temperature", "temperature"), ("top_p", "topP")):
        value = getattr(config, name)
        if value is not None and not (0 <= value <= 1 and isfinite(value)):
            param = f"inferenceConfig.{theirs}"
            raise BadRequest(
                f"{param!r} must be between 0 and 1, not {value}", param=param, code="invalid_value"
            )
    limit("inferenceConfig.maxTokens", config.max_tokens, 1)
    stops = tuple(config.stop_sequences or ())
    if len(stops) > MAX_STOPS or not all(stops):
        param = "inferenceConfig.stopSequences"
        raise BadRequest(
            f"{param!r} takes up to {MAX_STOPS} texts, none of them empty", param=param
        )
    return Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=_top_k(more),
        max_tokens=config.max_tokens,
        stop=stops,
    )


def _top_k(more: dict[str, Any]) -> int | None:
    """As Anthropic's models are told it, or Amazon's."""
    path, value = f"{_MORE}.top_k", more.get("top_k")
    inner = more.get("inferenceConfig")
    if value is None and isinstance(inner, dict):
        path, value = f"{_MORE}.inferenceConfig.topK", inner.get("topK")
    if value is not None and (type(value) is not int or value < 0):
        raise BadRequest(f"{path!r} must be a number from 0", param=path, code="invalid_type")
    return value


def _reasoning(output: _Output | None, more: dict[str, Any]) -> Reasoning | None:
    effort = output.effort if output is not None else None
    if effort is None and isinstance(more.get("reasoning_effort"), str):
        effort = more["reasoning_effort"]
    wanted = more.get("thinking")
    if wanted is None:
        return None if effort is None else Reasoning(effort)
    path = f"{_MORE}.thinking"
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "disabled":
        return Reasoning("none")
    if kind == "adaptive":
        return Reasoning(effort)
    if kind != "enabled":
        raise BadRequest(f"'{path}.type' must be enabled, adaptive or disabled", param=path)
    budget = given(wanted.get("budget_tokens"), f"{path}.budget_tokens")
    if type(budget) is not int:
        param = f"{path}.budget_tokens"
        raise BadRequest(f"{param!r} must be a number", param=param, code="invalid_type")
    limit(f"{path}.budget_tokens", budget, 1)
    return Reasoning(effort, budget)


# ---------------------------------------------------------------- answers


def encode(deltas: AsyncIterator[Delta], request: Request, reply: Reply) -> AsyncIterator[bytes]:
    """One JSON body, or frames closed by `metadata` on a clean end.

    Frames and bodies of this same dialect pass through untouched.

    Raises:
        StreamBroken: the deltas ended without a `finish`.
        RunnerError: whatever the deltas raise.
    """
    if not request.stream:
        since = time.perf_counter()

        def write(answer: Answer, request: Request, reply: Reply) -> bytes:
            return message(answer, time.perf_counter() - since, reply)

        return whole(deltas, request, reply, DIALECT, write)

    def choose(first: Delta) -> Writer:
        return Relay() if relayed(first, DIALECT) else EventWriter(request, reply)

    return events(deltas, reply, choose)
