"""From what a library user writes to a `Request`. Knows prompts, message dicts and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, Unpack

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from .errors import BadRequest
from .types import Message, Part, Request, ResponseFormat, Role, Sampling, Tool, ToolCall

Messages = Sequence[Message | Mapping[str, Any]]


class Options(TypedDict, total=False):
    """What may be said beside the prompt; every key is optional."""

    model: str
    temperature: float
    top_p: float
    max_tokens: int
    stop: str | Sequence[str]
    seed: int
    presence_penalty: float
    frequency_penalty: float
    n: int
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str
    response_format: Mapping[str, Any]
    fallbacks: Sequence[str]
    system: str
    user: str
    cache: bool
    lora: Sequence[Mapping[str, Any]]


class _Function(Struct, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(Struct, forbid_unknown_fields=True):
    function: _Function
    type: Literal["function"] = "function"


class _Schema(Struct):
    schema: dict[str, Any]
    name: str | None = None
    strict: bool | None = None


class _Format(Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


_Penalty = Annotated[float, Meta(ge=-2, le=2)]


class _Options(Struct, forbid_unknown_fields=True):
    """`Options` with their bounds, which are those of the HTTP surface."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: str | list[str] = []
    seed: int | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    n: Annotated[int, Meta(ge=1, le=16)] = 1
    tools: list[_Tool] = []
    tool_choice: str | None = None
    response_format: _Format | None = None
    fallbacks: list[str] = []
    system: str | None = None
    user: str | None = None
    cache: bool = False
    lora: list[dict[str, Any]] = []


class _CalledFunction(Struct):
    name: str
    arguments: str


class _Call(Struct):
    function: _CalledFunction
    id: str = ""


class _Turn(Struct, forbid_unknown_fields=True):
    """A message dict in OpenAI's shape."""

    role: Role
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    tool_calls: list[_Call] | UnsetType | None = UNSET
    tool_call_id: str | None = None


def as_request(prompt: str | Messages, model: str, /, **options: Unpack[Options]) -> Request:
    """A `Request` from a prompt or messages and options.

    Raises:
        BadRequest: an unknown option, a value out of its bounds, or messages that are not in
            OpenAI's shape; `param` says which.
    """
    asked = _options(options)
    tools = tuple(_tool(tool.function) for tool in asked.tools)
    return Request(
        model=asked.model or model,
        messages=_messages(prompt, asked.system),
        tools=tools,
        tool_choice=_choice(asked.tool_choice, tools),
        response_format=_format(asked.response_format),
        sampling=Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            max_tokens=asked.max_tokens,
            stop=(asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop),
            seed=asked.seed,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            n=asked.n,
        ),
        user=asked.user,
        fallbacks=tuple(asked.fallbacks),
        cache=asked.cache,
        extra={"lora": msgspec.Raw(msgspec.json.encode(asked.lora))} if asked.lora else {},
    )


def _options(options: Options) -> _Options:
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        known = ", ".join(Options.__annotations__)
        raise BadRequest(f"unknown option {min(unknown)!r}", hint=f"options are: {known}")
    plain: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    plain["tools"] = [_wrapped(tool) for tool in _listed("tools", plain.get("tools", ()))]
    found: _Options = _converted(plain, _Options, "")
    return found


def _wrapped(tool: Any) -> Any:
    """A bare function is taken for a tool."""
    return {"function": tool} if isinstance(tool, Mapping) and "function" not in tool else tool


def _listed(name: str, value: Any) -> list[Any]:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise BadRequest(f"{name!r} must be a list, not {value!r:.100}", param=name)
    return list(value)


def _converted(value: Any, kind: Any, at: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        path = (at + where.rstrip("`")).lstrip(".")
        raise BadRequest(f"{path or 'the request'}: {what}", param=path or None) from error


def _messages(prompt: str | Messages, system: str | None) -> tuple[Message, ...]:
    turns: list[Message] = [Message("system", system)] if system else []
    if isinstance(prompt, str):
        return (*turns, Message("user", prompt))
    for i, turn in enumerate(_listed("messages", prompt)):
        turns.append(turn if isinstance(turn, Message) else _message(turn, f"messages[{i}]"))
    if not turns:
        raise BadRequest("there are no messages", param="messages")
    return tuple(turns)


def _message(turn: Any, at: str) -> Message:
    if isinstance(turn, Mapping):  # clients' own objects dump every field they know as None
        turn = {name: value for name, value in turn.items() if value is not None}
    found: _Turn = _converted(turn, _Turn, at)
    return Message(
        role=found.role,
        content=found.content,
        name=found.name,
        tool_calls=tuple(
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in found.tool_calls or ()
        ),
        tool_call_id=found.tool_call_id,
    )


def _tool(function: _Function) -> Tool:
    parameters = function.parameters
    return Tool(
        name=function.name,
        description=function.description,
        parameters=None if parameters is None else msgspec.Raw(msgspec.json.encode(parameters)),
        strict=function.strict,
    )


def _choice(choice: str | None, tools: Sequence[Tool]) -> str | None:
    """A tool's name stands for the choice of that tool."""
    if choice is None or choice in ("auto", "none", "required"):
        return choice
    name = choice.removeprefix("function:")
    if name not in [tool.name for tool in tools]:
        raise BadRequest(f"`tool_choice` names no tool: {choice!r}", param="tool_choice")
    return f"function:{name}"


def _format(value: _Format | None) -> ResponseFormat | None:
    if value is None:
        return None
    if value.type != "json_schema":
        return ResponseFormat(type=value.type)
    if value.json_schema is None:
        raise BadRequest("a schema is missing", param="response_format.json_schema")
    named = value.json_schema
    return ResponseFormat(
        type="json_schema",
        schema=msgspec.Raw(msgspec.json.encode(named.schema)),
        name=named.name,
        strict=named.strict,
    )
