"""OpenAI's Responses API: bytes to `Request`, `Delta`s to bytes. Pure, no sockets.

Knows: `POST /v1/responses` and its count of tokens. Does not know: who answers, HTTP, what is
stored: whoever has earlier turns gives them to `Turn.continued`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from math import isfinite
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.deltas import Answer
from llm_runner_router.errors import BadRequest, RunnerError, Unsupported
from llm_runner_router.types import (
    Delta,
    Message,
    Reasoning,
    Request,
    RequestWire,
    ResponseFormat,
    Sampling,
    TokenizeRequest,
    Tool,
)

from . import openai_json
from .base import Reply
from .codec import (
    Writer,
    answer_of,
    check_model,
    events,
    extra,
    limit,
    missing,
    names_of_fallbacks,
    parse,
    raw_fields,
    relayed,
)
from .openai_chat import MAX_TOP_LOGPROBS
from .responses_read import conversation, items_of
from .responses_write import DIALECT, EventWriter, Relay, Told, error_fields, response

__all__ = ["DIALECT", "Codec", "Turn", "decode", "decode_count", "encode_count"]

_LOGPROBS = "message.output_text.logprobs"
_ABSENT = Raw(b"")


class _Tool(Struct, frozen=True):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: Raw = _ABSENT
    strict: bool | None = None


class _Format(Struct, frozen=True):
    type: str
    name: str | None = None
    schema: Raw = _ABSENT
    strict: bool | None = None


class _Text(Struct, frozen=True):
    format: _Format | None = None
    verbosity: str | None = None


class _Reasoning(Struct, frozen=True):
    effort: str | None = None
    summary: str | None = None


class _Named(Struct, frozen=True):
    type: str
    name: str | None = None


class _Choice(Struct, frozen=True):
    type: str
    name: str | None = None
    mode: str | None = None
    tools: list[_Named] | None = None


class _Asked(Struct, frozen=True, kw_only=True):
    """What both routes take."""

    model: str
    input: Raw = _ABSENT
    instructions: str | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Choice | None = None
    previous_response_id: str | None = None
    conversation: Any = None


class _Body(_Asked, frozen=True, kw_only=True):
    background: bool | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: _Reasoning | None = None
    service_tier: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: Any = None
    temperature: float | None = None
    text: _Text | None = None
    top_logprobs: int | None = None
    top_p: float | None = None
    truncation: str | None = None
    user: str | None = None
    fallbacks: list[str] | None = None
    cache: bool | None = None
    strict: bool | None = None


_decoder = msgspec.json.Decoder(_Body)
_count_decoder = msgspec.json.Decoder(_Asked)
_KNOWN = frozenset(_Body.__struct_fields__)
_OURS = ("background", "previous_response_id")
"""Fields that this gateway sees to itself, whoever answers."""


class Turn(Struct, frozen=True):
    """One request of this API: the question, and what becomes of it afterwards."""

    request: Request
    fields: dict[str, Raw]
    """As the client sent them."""
    items: tuple[Raw, ...]
    """The input of this turn."""
    instructions: str | None
    previous: str | None
    """The response that this one continues."""
    store: bool
    background: bool

    def continued(self, earlier: Sequence[Raw]) -> Turn:
        """With the items of the turns before, in order.

        Raises:
            BadRequest: an item is not what its type wants; names its path.
        """
        items = [*earlier, *self.items]
        wire = self.request.wire
        assert wire is not None
        fields = {**wire.fields, "input": Raw(msgspec.json.encode(items))}
        request = msgspec.structs.replace(
            self.request,
            messages=_messages(self.instructions, items),
            wire=RequestWire(DIALECT, fields),
        )
        return msgspec.structs.replace(self, request=request)


def decode(body: bytes) -> Turn:
    """Read a request for a response.

    Raises:
        BadRequest: malformed, of wrong types, or contradictory; `param` says where.
        Unsupported: it continues a conversation that OpenAI stores.
    """
    asked = parse(_decoder, body)
    fields = raw_fields(body)
    _check(asked)
    items = tuple(items_of(asked.input, "input"))
    tools, choice = _tools(asked)
    request = Request(
        model=asked.model,
        messages=_messages(asked.instructions, items),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls,
        response_format=_format(asked.text),
        sampling=_sampling(asked),
        stream=bool(asked.stream),
        include_usage=True,
        reasoning=_reasoning(asked.reasoning),
        service_tier=None if asked.service_tier == "auto" else asked.service_tier,
        user=asked.user,
        strict=asked.strict is True,
        fallbacks=names_of_fallbacks(asked.fallbacks),
        cache=asked.cache is True,
        extra=_extra(asked, fields),
        wire=RequestWire(DIALECT, {k: v for k, v in fields.items() if k not in _OURS}),
    )
    return Turn(
        request=request,
        fields=fields,
        items=items,
        instructions=asked.instructions,
        previous=asked.previous_response_id,
        store=asked.store is not False,
        background=asked.background is True,
    )


def decode_count(body: bytes) -> TokenizeRequest:
    """Read a request for the number of tokens of an input.

    Raises:
        BadRequest: malformed or of wrong types; `param` says where.
    """
    asked = parse(_count_decoder, body)
    check_model(asked.model)
    items = items_of(_input(asked), "input")
    return TokenizeRequest(
        asked.model, messages=_messages(asked.instructions, items), tools=_tools(asked)[0]
    )


def encode_count(tokens: int) -> bytes:
    """What the route for counting answers."""
    return msgspec.json.encode({"object": "response.input_tokens", "input_tokens": tokens})


# ---------------------------------------------------------------- what is asked


def _check(asked: _Body) -> None:
    check_model(asked.model)
    _input(asked)
    limit("max_output_tokens", asked.max_output_tokens, 1)
    for name, most in (("temperature", 2), ("top_p", 1)):
        value = getattr(asked, name)
        if value is not None and not (0 <= value <= most and isfinite(value)):
            raise BadRequest(
                f"{name!r} must be between 0 and {most}, not {value}",
                param=name,
                code="invalid_value",
            )
    top = asked.top_logprobs
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise BadRequest(
            f"'top_logprobs' must be between 0 and {MAX_TOP_LOGPROBS}, not {top}",
            param="top_logprobs",
        )
    if asked.conversation is not None:
        raise Unsupported(
            "conversations are not kept here",
            param="conversation",
            hint="continue with `previous_response_id`, or send the items",
        )
    if asked.background and asked.store is False:
        raise BadRequest("'background' needs 'store': true", param="background")


def _input(asked: _Asked) -> Raw:
    if bytes(asked.input) in (b"", b"null"):
        raise missing("input")
    return asked.input


def _messages(instructions: str | None, items: Sequence[Raw]) -> tuple[Message, ...]:
    found = tuple(conversation(instructions, items))
    if not found:
        raise BadRequest("'input' is empty", param="input", code="invalid_value")
    return found


def _extra(asked: _Body, fields: dict[str, Raw]) -> dict[str, Raw]:
    """Fields that have no name in `Request`, and ask for something."""
    found = extra(fields, _KNOWN)
    found = {name: value for name, value in found.items() if bytes(value) != b"null"}
    if asked.text is not None and asked.text.verbosity is not None:
        found["verbosity"] = Raw(msgspec.json.encode(asked.text.verbosity))
    if asked.truncation not in (None, "disabled"):
        found["truncation"] = fields["truncation"]
    return found


def _tools(asked: _Asked) -> tuple[tuple[Tool, ...], str | None]:
    """The tools that may be called, and how to choose among them."""
    tools = tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(asked.tools or ()))
    choice = asked.tool_choice
    if isinstance(choice, _Choice):
        if choice.type == "allowed_tools":
            names = {named.name for named in choice.tools or ()}
            tools = tuple(tool for tool in tools if tool.name in names)
            choice = choice.mode or "auto"
        elif choice.type == "function":
            return tools, _named(choice.name, tools)
        else:
            raise Unsupported(
                f"a choice of tools of the type {choice.type[:40]!r}", param="tool_choice.type"
            )
    if choice not in (None, "auto", "none", "required"):
        raise BadRequest(
            f"'tool_choice' must be auto, none, required or a function, not {choice!r}",
            param="tool_choice",
        )
    if choice == "required" and not tools:
        raise BadRequest("'tool_choice' is required without 'tools'", param="tool_choice")
    return tools, choice


def _named(name: str | None, tools: tuple[Tool, ...]) -> str:
    if all(tool.name != name for tool in tools):
        known = ", ".join(tool.name for tool in tools) or "none"
        raise BadRequest(
            f"'tool_choice' names {name!r}, which is not among the tools: {known}",
            param="tool_choice.name",
        )
    return f"function:{name}"


def _tool(tool: _Tool, path: str) -> Tool:
    if tool.type != "function":
        return Tool(tool.name or tool.type, kind=tool.type)
    if not tool.name:
        param = f"{path}.name"
        raise missing(param)
    return Tool(tool.name, tool.description, _object(tool.parameters), tool.strict)


def _object(raw: Raw) -> Raw | None:
    return None if bytes(raw) in (b"", b"null") else raw


def _format(text: _Text | None) -> ResponseFormat | None:
    wanted = text.format if text is not None else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ResponseFormat("json_object")
    if wanted.type != "json_schema":
        raise BadRequest(
            f"'text.format.type' must be text, json_object or json_schema, not {wanted.type!r}",
            param="text.format.type",
        )
    schema = _object(wanted.schema)
    if schema is None:
        param = "text.format.schema"
        raise missing(param)
    return ResponseFormat("json_schema", schema, wanted.name, wanted.strict)


def _sampling(asked: _Body) -> Sampling:
    logprobs = bool(asked.top_logprobs) or _LOGPROBS in (asked.include or ())
    return Sampling(
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=asked.max_output_tokens,
        logprobs=logprobs,
        top_logprobs=asked.top_logprobs if logprobs else None,
    )


def _reasoning(asked: _Reasoning | None) -> Reasoning | None:
    if asked is None or (asked.effort is None and asked.summary is None):
        return None
    return Reasoning(asked.effort, shown=None if asked.summary is None else True)


# ---------------------------------------------------------------- how it is answered


class Codec:
    """Encodes the answer to one turn; see `http.Codec`.

    Args:
        turn: what was asked.
        id: of the response.
        keep: takes the finished response object; None: nobody keeps it.
    """

    def __init__(self, turn: Turn, id: str, keep: Callable[[bytes], None] | None = None) -> None:
        self._told = Told(id, turn.fields, keep)
        self._writer: EventWriter | None = None

    def encode(
        self, deltas: AsyncIterator[Delta], request: Request, reply: Reply
    ) -> AsyncIterator[bytes]:
        """One JSON body, or the events of a response, as the request wants.

        Events and bodies of this same dialect pass through untouched.

        Raises:
            StreamBroken: the deltas ended without a `finish`.
            RunnerError: whatever the deltas raise.
        """
        if not request.stream:
            return self._whole(deltas, request, reply)

        def choose(first: Delta) -> Writer:
            if relayed(first, DIALECT):
                return Relay(self._told)
            self._writer = EventWriter(self._told, request, reply)
            return self._writer

        return events(deltas, reply, choose)

    async def _whole(
        self, deltas: AsyncIterator[Delta], request: Request, reply: Reply
    ) -> AsyncIterator[bytes]:
        answer: Answer = await answer_of(deltas, reply)
        if answer.wire is not None and answer.wire.dialect == DIALECT:
            data = answer.wire.data
        else:
            data = response(answer, self._told, request, reply)
        if self._told.keep is not None:
            self._told.keep(data)
        yield data

    def error(self, exc: RunnerError) -> bytes:
        """`{"error": {message, type, param, code}}`."""
        return openai_json.error(exc)

    def stream_error(self, exc: RunnerError) -> bytes:
        """The events that tell of a failure; nothing follows them."""
        if self._writer is not None:
            return self._writer.fail(exc)
        told = {"type": "error", "sequence_number": 0, **error_fields(exc)}
        data = msgspec.json.encode(told)
        return b"event: error\ndata: " + data + b"\n\n"
