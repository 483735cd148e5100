"""Cohere's v2 chat: bytes to `Request`, `Delta`s to bytes. Pure, no sockets.

Knows: `POST /v2/chat`, its events and errors. Does not know: who answers, HTTP, vectors and
rankings (`cohere_others.py`).
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
    Tool,
)

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
    names_of_fallbacks,
    parse,
    raw_fields,
    relayed,
    whole,
)
from .cohere_read import Document, Turn, conversation
from .cohere_write import DIALECT, EventWriter, error, response, stream_error

__all__ = ["DIALECT", "decode", "encode", "error", "stream_error"]

_ANYTHING = Raw(b'{"type":"object","properties":{}}')
_QUIET = ("OFF", "DISABLED")


class _Function(Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Raw] | None = None


class _Tool(Struct, frozen=True):
    type: str | None = None
    function: _Function | None = None


class _Format(Struct, frozen=True):
    type: str
    json_schema: dict[str, Raw] | None = None


class _Thinking(Struct, frozen=True):
    type: str
    token_budget: int | None = None


class _Citing(Struct, frozen=True):
    mode: str | None = None


class _Body(Struct, frozen=True, kw_only=True):
    model: str
    messages: list[Turn]
    stream: bool | None = None
    tools: list[_Tool] | None = None
    strict_tools: bool | None = None
    tool_choice: str | None = None
    documents: list[str | Document] | None = None
    citation_options: _Citing | None = None
    response_format: _Format | None = None
    safety_mode: str | None = None
    max_tokens: int | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    k: int | None = None
    p: float | None = None
    logprobs: bool | None = None
    thinking: _Thinking | None = None
    priority: int | None = None
    fallbacks: list[str] | None = None
    cache: bool | None = None
    strict: bool | None = None


_decoder = msgspec.json.Decoder(_Body)
_THEIRS = frozenset(("citation_options", "safety_mode", "priority"))
"""What other dialects have no name for."""
_KNOWN = frozenset(_Body.__struct_fields__) - _THEIRS


def decode(body: bytes) -> Request:
    """Read a request for a chat.

    Raises:
        BadRequest: malformed, of wrong types, or contradictory; `param` says where.
    """
    asked = parse(_decoder, body)
    fields = raw_fields(body)
    check_model(asked.model)
    tools = _tools(asked)
    return Request(
        model=asked.model,
        messages=conversation(asked.messages, asked.documents),
        tools=tools,
        tool_choice=_tool_choice(asked.tool_choice, tools),
        response_format=_format(asked.response_format),
        sampling=_sampling(asked),
        stream=bool(asked.stream),
        include_usage=True,
        reasoning=_reasoning(asked.thinking),
        strict=asked.strict is True,
        fallbacks=names_of_fallbacks(asked.fallbacks),
        cache=asked.cache is True,
        extra=_extra(asked, fields),
        wire=RequestWire(DIALECT, fields),
    )


def _extra(asked: _Body, fields: dict[str, Raw]) -> dict[str, Raw]:
    """What has no name in `Request`, unless it asks for nothing."""
    found = extra(fields, _KNOWN)
    mode = asked.citation_options.mode if asked.citation_options is not None else None
    if (mode or "").upper() in _QUIET:
        found.pop("citation_options", None)
    elif asked.documents:
        # Answers to documents have citations there, asked for or not.
        found.setdefault("citation_options", Raw(b"{}"))
    if asked.safety_mode == "CONTEXTUAL":
        found.pop("safety_mode", None)
    if asked.priority == 0:
        found.pop("priority", None)
    return {name: value for name, value in found.items() if bytes(value) != b"null"}


# ---------------------------------------------------------------- how to answer


def _tools(asked: _Body) -> tuple[Tool, ...]:
    found = []
    for i, tool in enumerate(asked.tools or ()):
        path = f"tools[{i}]"
        if tool.type not in (None, "function"):
            param = f"{path}.type"
            raise BadRequest(f"{param!r} must be function, not {tool.type[:40]!r}", param=param)
        function = given(tool.function, f"{path}.function")
        name = given(function.name, f"{path}.function.name")
        told = function.parameters
        schema = _ANYTHING if told is None else Raw(msgspec.json.encode(told))
        found.append(Tool(name, function.description, schema, asked.strict_tools or None))
    return tuple(found)


def _tool_choice(choice: str | None, tools: tuple[Tool, ...]) -> str | None:
    if choice is None:
        return None
    found = {"REQUIRED": "required", "NONE": "none"}.get(choice.upper())
    if found is None:
        raise BadRequest(
            f"'tool_choice' must be REQUIRED or NONE, not {choice[:40]!r}", param="tool_choice"
        )
    if found == "required" and not tools:
        raise BadRequest("'tool_choice' is REQUIRED without 'tools'", param="tool_choice")
    return found


def _format(wanted: _Format | None) -> ResponseFormat | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type != "json_object":
        param = "response_format.type"
        raise BadRequest(
            f"{param!r} must be text or json_object, not {wanted.type[:40]!r}", param=param
        )
    if wanted.json_schema is None:
        return ResponseFormat("json_object")
    schema = Raw(msgspec.json.encode(wanted.json_schema))
    return ResponseFormat("json_schema", schema, strict=True)


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0, 5),
    ("p", 0, 1),
    ("k", 0, 500),
    ("frequency_penalty", 0, 1),
    ("presence_penalty", 0, 1),
    ("seed", 0, 2**64 - 1),
)


def _sampling(asked: _Body) -> Sampling:
    for name, low, high in _RANGES:
        value: Any = getattr(asked, name)
        if value is not None and not (low <= value <= high and isfinite(value)):
            raise BadRequest(
                f"{name!r} must be between {low} and {high}, not {value}",
                param=name,
                code="invalid_value",
            )
    limit("max_tokens", asked.max_tokens, 1)
    stops = tuple(asked.stop_sequences or ())
    if len(stops) > MAX_STOPS or not all(stops):
        raise BadRequest(
            f"'stop_sequences' takes up to {MAX_STOPS} texts, none of them empty",
            param="stop_sequences",
        )
    return Sampling(
        temperature=asked.temperature,
        top_p=asked.p,
        top_k=asked.k or None,  # 0 is off there
        max_tokens=asked.max_tokens,
        stop=stops,
        seed=None if asked.seed is None else asked.seed % 2**63,  # as much as others take
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        logprobs=asked.logprobs is True,
    )


def _reasoning(wanted: _Thinking | None) -> Reasoning | None:
    if wanted is None:
        return None
    if wanted.type == "disabled":
        return Reasoning("none")
    if wanted.type != "enabled":
        raise BadRequest(
            f"'thinking.type' must be enabled or disabled, not {wanted.type[:40]!r}",
            param="thinking.type",
        )
    limit("thinking.token_budget", wanted.token_budget, 1)
    # Cohere's endpoint for OpenAI's format calls thoughts without a limit `high`.
    effort = "high" if wanted.token_budget is None else None
    return Reasoning(effort, wanted.token_budget, shown=True)


# ---------------------------------------------------------------- answers


def encode(deltas: AsyncIterator[Delta], request: Request, reply: Reply) -> AsyncIterator[bytes]:
    """One JSON body, or SSE events closed by `message-end` on a clean end.

    Events and bodies of this same dialect pass through untouched.

    Raises:
        StreamBroken: the deltas ended without a `finish`.
        RunnerError: whatever the deltas raise.
    """
    if not request.stream:
        return whole(deltas, request, reply, DIALECT, response)

    def choose(first: Delta) -> Writer:
        return EventRelay() if relayed(first, DIALECT) else EventWriter(request, reply)

    return events(deltas, reply, choose)
