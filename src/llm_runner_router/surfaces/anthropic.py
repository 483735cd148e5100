"""Anthropic's Messages API: bytes to `Request`, `Delta`s to bytes. Pure, no sockets.

Knows: `POST /v1/messages` and `/v1/messages/count_tokens`, their events and errors. Does not know:
who answers, HTTP.
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

from .anthropic_read import Block, Turn, conversation
from .anthropic_write import DIALECT, EventWriter, error, message, stream_error
from .base import Reply
from .codec import (
    MAX_STOPS,
    EventRelay,
    Writer,
    check_model,
    events,
    extra,
    given,
    limit,
    missing,
    names_of_fallbacks,
    parse,
    raw_fields,
    relayed,
    whole,
)

__all__ = ["DIALECT", "decode", "decode_count", "encode", "encode_count", "error", "stream_error"]


class _Tool(Struct, frozen=True):
    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Raw] | None = None
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None


class _Choice(Struct, frozen=True):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(Struct, frozen=True):
    type: str
    budget_tokens: int | None = None
    display: str | None = None


class _Format(Struct, frozen=True):
    type: str
    schema: dict[str, Raw] | None = None


class _Output(Struct, frozen=True):
    effort: str | None = None
    format: _Format | None = None


class _Metadata(Struct, frozen=True):
    user_id: str | None = None


class _Asked(Struct, frozen=True, kw_only=True):
    """What both routes take."""

    model: str
    messages: list[Turn]
    system: str | list[Block] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    thinking: _Thinking | None = None
    output_config: _Output | None = None


class _Body(_Asked, frozen=True, kw_only=True):
    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: _Metadata | None = None
    service_tier: str | None = None
    fallbacks: list[str] | None = None
    cache: bool | None = None
    strict: bool | None = None


_decoder = msgspec.json.Decoder(_Body)
_count_decoder = msgspec.json.Decoder(_Asked)
_KNOWN = frozenset(_Body.__struct_fields__)


def decode(body: bytes) -> Request:
    """Read a request for a message.

    Raises:
        BadRequest: malformed, of wrong types, or contradictory; `param` says where.
    """
    asked = parse(_decoder, body)
    fields = raw_fields(body)
    check_model(asked.model)
    limit("max_tokens", asked.max_tokens, 1)
    choice = asked.tool_choice
    tools = _tools(asked)
    parallel = None if choice is None else choice.disable_parallel_tool_use
    return Request(
        model=asked.model,
        messages=tuple(conversation(asked.system, asked.messages)),
        tools=tools,
        tool_choice=_tool_choice(choice, tools),
        parallel_tool_calls=None if parallel is None else not parallel,
        response_format=_format(asked.output_config),
        sampling=_sampling(asked),
        stream=bool(asked.stream),
        include_usage=True,
        reasoning=_reasoning(asked),
        service_tier=_tier(asked.service_tier),
        user=asked.metadata.user_id if asked.metadata is not None else None,
        strict=asked.strict is True,
        fallbacks=names_of_fallbacks(asked.fallbacks),
        cache=asked.cache is True,
        extra=extra(fields, _KNOWN),
        wire=RequestWire(DIALECT, fields),
    )


def decode_count(body: bytes) -> TokenizeRequest:
    """Read a request for the number of tokens of a prompt.

    Raises:
        BadRequest: malformed or of wrong types; `param` says where.
    """
    asked = parse(_count_decoder, body)
    check_model(asked.model)
    return TokenizeRequest(
        model=asked.model,
        messages=tuple(conversation(asked.system, asked.messages)),
        tools=_tools(asked),
    )


class _Count(Struct, frozen=True):
    input_tokens: int


def encode_count(tokens: int) -> bytes:
    """`{"input_tokens": n}`."""
    return msgspec.json.encode(_Count(tokens))


# ---------------------------------------------------------------- how to answer


def _tools(asked: _Asked) -> tuple[Tool, ...]:
    return tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(asked.tools or ()))


def _tool(tool: _Tool, path: str) -> Tool:
    if tool.type not in (None, "custom"):
        return Tool(tool.name or tool.type or "", kind=tool.type)
    if tool.input_schema is None:
        param = f"{path}.input_schema"
        raise missing(param)
    return Tool(
        name=given(tool.name, f"{path}.name"),
        description=tool.description,
        parameters=Raw(msgspec.json.encode(tool.input_schema)),
        strict=tool.strict,
        cache_control=tool.cache_control,
    )


def _tool_choice(choice: _Choice | None, tools: tuple[Tool, ...]) -> str | None:
    if choice is None:
        return None
    if choice.type == "tool":
        name = given(choice.name, "tool_choice.name")
        if all(tool.name != name for tool in tools):
            known = ", ".join(tool.name for tool in tools) or "none"
            raise BadRequest(
                f"'tool_choice' names {name!r}, which is not among the tools: {known}",
                param="tool_choice.name",
            )
        return f"function:{name}"
    found = {"auto": "auto", "any": "required", "none": "none"}.get(choice.type)
    if found is None:
        raise BadRequest(
            f"'tool_choice.type' must be auto, any, tool or none, not {choice.type[:40]!r}",
            param="tool_choice.type",
        )
    if found == "required" and not tools:
        raise BadRequest("'tool_choice' is any without 'tools'", param="tool_choice")
    return found


def _format(output: _Output | None) -> ResponseFormat | None:
    wanted = output.format if output is not None else None
    if wanted is None:
        return None
    path = "output_config.format"
    if wanted.type != "json_schema":
        raise BadRequest(f"'{path}.type' must be json_schema", param=f"{path}.type")
    schema = given(wanted.schema, f"{path}.schema")
    return ResponseFormat("json_schema", Raw(msgspec.json.encode(schema)), strict=True)


def _sampling(asked: _Body) -> Sampling:
    for name in ("temperature", "top_p"):
        value = getattr(asked, name)
        if value is not None and not (0 <= value <= 1 and isfinite(value)):
            raise BadRequest(
                f"{name!r} must be between 0 and 1, not {value}", param=name, code="invalid_value"
            )
    if asked.top_k is not None and asked.top_k < 0:
        raise BadRequest("'top_k' must not be negative", param="top_k", code="invalid_value")
    stops = tuple(asked.stop_sequences or ())
    if len(stops) > MAX_STOPS or not all(stops):
        raise BadRequest(
            f"'stop_sequences' takes up to {MAX_STOPS} texts, none of them empty",
            param="stop_sequences",
        )
    return Sampling(
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        max_tokens=asked.max_tokens,
        stop=stops,
    )


def _reasoning(asked: _Asked) -> Reasoning | None:
    effort = asked.output_config.effort if asked.output_config is not None else None
    wanted = asked.thinking
    if wanted is None:
        return None if effort is None else Reasoning(effort)
    shown = None if wanted.display is None else wanted.display != "omitted"
    if wanted.type == "disabled":
        return Reasoning("none")
    if wanted.type == "enabled":
        budget = given(wanted.budget_tokens, "thinking.budget_tokens")
        limit("thinking.budget_tokens", budget, 1)
        return Reasoning(effort, budget, shown)
    return Reasoning(effort, None, shown)


def _tier(tier: str | None) -> str | None:
    return {"standard_only": "default"}.get(tier or "", tier)


# ---------------------------------------------------------------- answers


def encode(deltas: AsyncIterator[Delta], request: Request, reply: Reply) -> AsyncIterator[bytes]:
    """One JSON body, or SSE events closed by `message_stop` on a clean end.

    Events and bodies of this same dialect pass through untouched.

    Raises:
        StreamBroken: the deltas ended without a `finish`.
        RunnerError: whatever the deltas raise.
    """
    if not request.stream:
        return whole(deltas, request, reply, DIALECT, message)

    def choose(first: Delta) -> Writer:
        return EventRelay() if relayed(first, DIALECT) else EventWriter(request, reply)

    return events(deltas, reply, choose)
