"""OpenAI's chat completions: bytes to `Request`, `Delta`s to bytes. Pure, no sockets.

Knows: `POST /v1/chat/completions`, its chunks and its errors. Does not know: who answers, HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadRequest
from llm_runner_router.types import (
    GOOGLE,
    Delta,
    Message,
    Part,
    Request,
    RequestWire,
    ResponseFormat,
    Role,
    Tool,
    ToolCall,
)

from .base import Reply
from .codec import Writer, check_model, events, extra, limit, parse, raw_fields, relayed, whole
from .openai_chat_write import CHUNK, ChunkWriter, completion
from .openai_json import Asked, Relay, error, fallbacks, reasoning, sampling, stream_error

__all__ = ["DIALECT", "decode", "encode", "error", "stream_error"]

DIALECT = "openai_chat"
MAX_TOP_LOGPROBS = 20


class _Function(Struct, frozen=True):
    name: str
    arguments: str = ""


class _Call(Struct, frozen=True):
    function: _Function
    id: str = ""
    type: str = "function"
    extra_content: Any = None
    """Where Google's own endpoint for this format has the signature of a call."""


class _Message(Struct, frozen=True):
    role: Role
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _ToolFunction(Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Raw] | None = None
    strict: bool | None = None


class _Tool(Struct, frozen=True):
    type: str
    function: _ToolFunction | None = None


class _Named(Struct, frozen=True):
    name: str


class _ToolChoice(Struct, frozen=True):
    type: str
    function: _Named | None = None


class _Schema(Struct, frozen=True):
    name: str | None = None
    schema: dict[str, Raw] | None = None
    strict: bool | None = None


class _Format(Struct, frozen=True):
    type: str
    json_schema: _Schema | None = None
    schema: dict[str, Raw] | None = None


class _Body(Asked, frozen=True, kw_only=True):
    messages: list[_Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None


_decoder = msgspec.json.Decoder(_Body)
_KNOWN = frozenset(_Body.__struct_fields__)


def decode(body: bytes) -> Request:
    """Read a chat request.

    Raises:
        BadRequest: malformed, of wrong types, or contradictory; `param` says where.
    """
    asked = parse(_decoder, body)
    fields = raw_fields(body)
    check_model(asked.model)
    tools = tuple(_tool(i, tool) for i, tool in enumerate(asked.tools or ()))
    top = _top_logprobs(asked)
    options = asked.stream_options
    return Request(
        model=asked.model,
        messages=_messages(asked.messages),
        tools=tools,
        tool_choice=_tool_choice(asked.tool_choice, tools),
        parallel_tool_calls=asked.parallel_tool_calls,
        response_format=_format(asked.response_format),
        sampling=sampling(asked, _max_tokens(asked), bool(asked.logprobs), top),
        stream=bool(asked.stream),
        include_usage=bool(options is not None and options.include_usage),
        user=asked.user,
        fallbacks=fallbacks(asked),
        cache=asked.cache is True,
        strict=asked.strict is True,
        reasoning=reasoning(asked),
        service_tier=asked.service_tier,
        extra=extra(fields, _KNOWN),
        wire=RequestWire(DIALECT, fields),
    )


def _messages(messages: list[_Message]) -> tuple[Message, ...]:
    if not messages:
        raise BadRequest("'messages' is empty", param="messages", code="invalid_value")
    return tuple(_message(f"messages[{i}]", m) for i, m in enumerate(messages))


def _message(at: str, m: _Message) -> Message:
    if m.content is None and m.role != "assistant":
        raise BadRequest(f"'{at}.content' is missing", param=f"{at}.content")
    if m.role == "tool" and not m.tool_call_id:
        raise BadRequest(
            f"'{at}.tool_call_id' is missing: a tool's answer names the call it answers",
            param=f"{at}.tool_call_id",
        )
    for i, call in enumerate(m.tool_calls or ()):
        if call.type != "function":
            param = f"{at}.tool_calls[{i}].type"
            raise BadRequest(f"{param!r} must be 'function', not {call.type!r}", param=param)
    return Message(
        role=m.role,
        content=tuple(m.content) if isinstance(m.content, list) else m.content,
        name=m.name,
        tool_calls=tuple(
            ToolCall(c.id, c.function.name, c.function.arguments, signature=_signature(c))
            for c in m.tool_calls or ()
        ),
        tool_call_id=m.tool_call_id,
    )


def _signature(call: _Call) -> str | None:
    held = call.extra_content.get("google") if isinstance(call.extra_content, dict) else None
    signature = held.get("thought_signature") if isinstance(held, dict) else None
    return GOOGLE + signature if isinstance(signature, str) and signature else None


def _tool(i: int, tool: _Tool) -> Tool:
    if tool.type != "function":
        raise BadRequest(
            f"'tools[{i}].type' must be 'function', not {tool.type!r}", param=f"tools[{i}].type"
        )
    function = tool.function
    if function is None or not function.name:
        param = f"tools[{i}].function" + (".name" if function else "")
        raise BadRequest(f"{param!r} is missing", param=param)
    return Tool(function.name, function.description, _raw(function.parameters), function.strict)


def _raw(value: dict[str, Raw] | None) -> Raw | None:
    return None if value is None else Raw(msgspec.json.encode(value))


def _tool_choice(choice: str | _ToolChoice | None, tools: tuple[Tool, ...]) -> str | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise BadRequest(
                f"'tool_choice' must be auto, none, required or a function, not {choice!r}",
                param="tool_choice",
            )
        if choice == "required" and not tools:
            raise BadRequest("'tool_choice' is required without 'tools'", param="tool_choice")
        return choice
    if choice.type != "function" or choice.function is None:
        raise BadRequest(
            "'tool_choice' as an object must be {type: function, function: {name}}",
            param="tool_choice.type",
        )
    name = choice.function.name
    if all(tool.name != name for tool in tools):
        known = ", ".join(tool.name for tool in tools) or "none"
        raise BadRequest(
            f"'tool_choice' names {name!r}, which is not among the tools: {known}",
            param="tool_choice.function.name",
        )
    return f"function:{name}"


def _format(asked: _Format | None) -> ResponseFormat | None:
    if asked is None:
        return None
    if asked.type == "text":
        return ResponseFormat("text")
    if asked.type == "json_object":
        return ResponseFormat("json_object", schema=_raw(asked.schema))
    if asked.type != "json_schema":
        raise BadRequest(
            f"'response_format.type' must be text, json_object or json_schema, not {asked.type!r}",
            param="response_format.type",
        )
    named = asked.json_schema or _Schema(schema=asked.schema)
    if named.schema is None:
        param = "response_format.json_schema" + (".schema" if asked.json_schema else "")
        raise BadRequest(f"{param!r} is missing", param=param)
    return ResponseFormat("json_schema", _raw(named.schema), named.name, named.strict)


def _max_tokens(asked: _Body) -> int | None:
    limit("max_tokens", asked.max_tokens, 1)
    limit("max_completion_tokens", asked.max_completion_tokens, 1)
    old, new = asked.max_tokens, asked.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise BadRequest(
            f"'max_tokens' ({old}) and 'max_completion_tokens' ({new}) differ; send one of them",
            param="max_completion_tokens",
        )
    return old if new is None else new


def _top_logprobs(asked: _Body) -> int | None:
    top = asked.top_logprobs
    if top is None:
        return None
    if not 0 <= top <= MAX_TOP_LOGPROBS:
        raise BadRequest(
            f"'top_logprobs' must be between 0 and {MAX_TOP_LOGPROBS}, not {top}",
            param="top_logprobs",
        )
    if not asked.logprobs and top:
        raise BadRequest("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
    return top


def encode(deltas: AsyncIterator[Delta], request: Request, reply: Reply) -> AsyncIterator[bytes]:
    """One JSON body, or SSE events closed by `[DONE]` on a clean end, as the request wants.

    Events and bodies of this same dialect pass through untouched.

    Raises:
        StreamBroken: the deltas ended without a `finish`.
        RunnerError: whatever the deltas raise.
    """
    if not request.stream:
        return whole(deltas, request, reply, DIALECT, completion)

    def choose(first: Delta) -> Writer:
        if relayed(first, DIALECT):
            return Relay(request, reply, CHUNK)
        return ChunkWriter(request, reply)

    return events(deltas, reply, choose)
