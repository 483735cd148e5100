"""Anthropic's Messages API: bytes to `Request`, `Delta`s to bytes. Pure, no sockets.

Knows: `POST /v1/messages` and `/v1/messages/count_tokens`, their events and errors. Does not know:
who answers, HTTP.

A message of the user's that holds results of tools becomes one message per result and one with the
rest, as the other dialects have them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from math import isfinite
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadRequest
from llm_runner_router.types import (
    Delta,
    FileData,
    FilePart,
    ForeignPart,
    ImagePart,
    ImageURL,
    Message,
    Part,
    Reasoning,
    RedactedPart,
    Request,
    RequestWire,
    ResponseFormat,
    Sampling,
    TextPart,
    ThinkingPart,
    TokenizeRequest,
    Tool,
    ToolCall,
)

from .anthropic_write import DIALECT, EventWriter, Relay, error, message, stream_error
from .base import Reply
from .openai_json import (
    MAX_STOPS,
    Writer,
    answer_of,
    check_model,
    events,
    extra,
    limit,
    names_of_fallbacks,
    parse,
    raw_fields,
    relayed,
)

__all__ = ["DIALECT", "decode", "decode_count", "encode", "encode_count", "error", "stream_error"]

V = TypeVar("V")


class _Source(Struct, frozen=True):
    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    content: Any = None


class _Switch(Struct, frozen=True):
    enabled: bool | None = None


class _Block(Struct, frozen=True):
    """Any block; which fields count depends on `type`."""

    type: str
    text: str | None = None
    source: _Source | None = None
    title: str | None = None
    citations: Any = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[_Block] | None = None
    is_error: bool | None = None
    cache_control: dict[str, Any] | None = None


class _Message(Struct, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]


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
    messages: list[_Message]
    system: str | list[_Block] | None = None
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
        messages=tuple(_conversation(asked)),
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
        model=asked.model, messages=tuple(_conversation(asked)), tools=_tools(asked)
    )


class _Count(Struct, frozen=True):
    input_tokens: int


def encode_count(tokens: int) -> bytes:
    """`{"input_tokens": n}`."""
    return msgspec.json.encode(_Count(tokens))


# ---------------------------------------------------------------- the conversation


def _conversation(asked: _Asked) -> Iterator[Message]:
    if not asked.messages:
        raise BadRequest("'messages' is empty", param="messages", code="invalid_value")
    if isinstance(asked.system, str):
        if asked.system:
            yield Message("system", asked.system)
    elif asked.system:
        parts = _parts(asked.system, "system")
        yield Message("system", _plain(parts))
    for i, turn in enumerate(asked.messages):
        yield from _turn(turn, f"messages[{i}]")


def _turn(turn: _Message, path: str) -> Iterator[Message]:
    if isinstance(turn.content, str):
        yield Message(turn.role, turn.content)
        return
    if turn.role == "assistant":
        yield _assistant(turn.content, path)
        return
    pending: list[_Block] = []
    for k, block in enumerate(turn.content):
        if block.type != "tool_result":
            pending.append(block)
            continue
        if pending:
            yield Message(turn.role, _plain(_parts(pending, path + ".content")))
            pending = []
        yield _result(block, f"{path}.content[{k}]")
    if pending:
        yield Message(turn.role, _plain(_parts(pending, path + ".content")))


def _assistant(blocks: list[_Block], path: str) -> Message:
    spoken = [block for block in blocks if block.type != "tool_use"]
    calls = []
    for k, block in enumerate(blocks):
        if block.type == "tool_use":
            where = f"{path}.content[{k}]"
            given = msgspec.json.encode(block.input or {}).decode()
            name, id = _given(block.name, f"{where}.name"), _given(block.id, f"{where}.id")
            calls.append(ToolCall(id, name, given, block.cache_control))
    content = _plain(_parts(spoken, path + ".content")) if spoken else None
    return Message("assistant", content, tool_calls=tuple(calls))


def _result(block: _Block, path: str) -> Message:
    content: str | tuple[Part, ...] = ""
    if isinstance(block.content, str):
        content = block.content
    elif block.content:
        content = _plain(_parts(block.content, path + ".content"))
    return Message(
        "tool",
        content,
        tool_call_id=_given(block.tool_use_id, f"{path}.tool_use_id"),
        is_error=block.is_error is True,
        cache_control=block.cache_control,
    )


def _plain(parts: tuple[Part, ...]) -> str | tuple[Part, ...]:
    """A lone text as a string, which every template knows."""
    if len(parts) == 1 and isinstance(parts[0], TextPart) and parts[0].cache_control is None:
        return parts[0].text
    return parts


def _parts(blocks: list[_Block], path: str) -> tuple[Part, ...]:
    return tuple(_part(block, f"{path}[{k}]") for k, block in enumerate(blocks))


def _part(block: _Block, path: str) -> Part:
    kind = block.type
    if kind == "text":
        return TextPart(_given(block.text, f"{path}.text", empty=True), block.cache_control)
    if kind == "image":
        url = _image(_given(block.source, f"{path}.source"), path)
        return ImagePart(ImageURL(url), block.cache_control)
    if kind == "document":
        return _document(block, _given(block.source, f"{path}.source"), path)
    if kind == "thinking":
        thought = _given(block.thinking, f"{path}.thinking", empty=True)
        return ThinkingPart(thought, block.signature)
    if kind == "redacted_thinking":
        return RedactedPart(_given(block.data, f"{path}.data"))
    return ForeignPart(kind)


def _given(value: V | None, path: str, *, empty: bool = False) -> V:
    if value is None or (value == "" and not empty):
        raise BadRequest(f"{path!r} is missing", param=path, code="missing_required_parameter")
    return value


def _image(source: _Source, path: str) -> str:
    if source.type == "url":
        return _given(source.url, f"{path}.source.url")
    if source.type == "base64":
        kind = _given(source.media_type, f"{path}.source.media_type")
        return f"data:{kind};base64,{_given(source.data, f'{path}.source.data')}"
    where = f"{path}.source.type"
    raise BadRequest(f"{where!r} must be base64 or url, not {source.type[:40]!r}", param=where)


def _document(block: _Block, source: _Source, path: str) -> Part:
    cited = isinstance(block.citations, dict) and block.citations.get("enabled") is True
    if source.type == "url":
        data = FileData(file_url=_given(source.url, f"{path}.source.url"), filename=block.title)
    elif source.type == "file":
        data = FileData(file_id=_given(source.file_id, f"{path}.source.file_id"))
    elif source.type == "base64":
        kind = _given(source.media_type, f"{path}.source.media_type")
        text = _given(source.data, f"{path}.source.data")
        data = FileData(f"data:{kind};base64,{text}", filename=block.title)
    elif source.type == "text":
        from urllib.parse import quote

        text = quote(_given(source.data, f"{path}.source.data", empty=True))
        data = FileData(f"data:text/plain;charset=utf-8,{text}", filename=block.title)
    else:
        return ForeignPart(f"document of {source.type[:40]}")
    return FilePart(data, block.cache_control, cited)


# ---------------------------------------------------------------- how to answer


def _tools(asked: _Asked) -> tuple[Tool, ...]:
    return tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(asked.tools or ()))


def _tool(tool: _Tool, path: str) -> Tool:
    if tool.type not in (None, "custom"):
        return Tool(tool.name or tool.type or "", kind=tool.type)
    if tool.input_schema is None:
        param = f"{path}.input_schema"
        raise BadRequest(f"{param!r} is missing", param=param, code="missing_required_parameter")
    return Tool(
        name=_given(tool.name, f"{path}.name"),
        description=tool.description,
        parameters=Raw(msgspec.json.encode(tool.input_schema)),
        strict=tool.strict,
        cache_control=tool.cache_control,
    )


def _tool_choice(choice: _Choice | None, tools: tuple[Tool, ...]) -> str | None:
    if choice is None:
        return None
    if choice.type == "tool":
        name = _given(choice.name, "tool_choice.name")
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
    schema = _given(wanted.schema, f"{path}.schema")
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
        budget = _given(wanted.budget_tokens, "thinking.budget_tokens")
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
        return _whole(deltas, request, reply)

    def choose(first: Delta) -> Writer:
        return Relay() if relayed(first, DIALECT) else EventWriter(request, reply)

    return events(deltas, reply, choose)


async def _whole(
    deltas: AsyncIterator[Delta], request: Request, reply: Reply
) -> AsyncIterator[bytes]:
    answer = await answer_of(deltas, reply)
    if answer.wire is not None and answer.wire.dialect == DIALECT:
        yield answer.wire.data
    else:
        yield message(answer, request, reply)
