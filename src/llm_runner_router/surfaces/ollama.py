"""Ollama's own API: bytes to `Request`, what is asked of a model beside it. Pure, no sockets.

Knows: the bodies of `/api/chat`, `/api/generate`, `/api/embed` and `/api/embeddings`. Does not
know: answers (`ollama_write.py`), who answers, HTTP, how long a model stays loaded.

Calls of functions have no ids here: a tool's answer belongs to the first call of that name that has
none yet.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from math import inf, isfinite
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.types import (
    EmbedRequest,
    ImagePart,
    ImageURL,
    Message,
    Part,
    Reasoning,
    Request,
    RequestWire,
    ResponseFormat,
    Role,
    Sampling,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)

from .codec import MAX_STOPS, check_model, missing, parse
from .openai_chat import MAX_TOP_LOGPROBS

DIALECT = "ollama"
_ABSENT = Raw(b"")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h)")
_MAGIC = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
)
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class _Function(Struct, frozen=True):
    name: str
    arguments: dict[str, Raw] = {}


class _Call(Struct, frozen=True):
    function: _Function
    id: str | None = None


class _Message(Struct, frozen=True):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[_Call] | None = None
    tool_name: str | None = None
    name: str | None = None
    tool_call_id: str | None = None


class _ToolFunction(Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Raw] | None = None


class _Tool(Struct, frozen=True):
    function: _ToolFunction
    type: str = "function"


class _Options(Struct, frozen=True):
    """Those that have a name in `Sampling`; the others are read as they are."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_predict: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class _Asked(Struct, frozen=True, kw_only=True):
    model: str
    stream: bool | None = None
    format: Raw = _ABSENT
    options: Raw = _ABSENT
    keep_alive: float | str | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None
    shift: bool | None = None
    strict: bool | None = None


class _Chat(_Asked, frozen=True, kw_only=True):
    messages: list[_Message] | None = None
    tools: list[_Tool] | None = None


class _Generate(_Asked, frozen=True, kw_only=True):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    images: list[str] | None = None
    raw: bool | None = None
    context: list[int] | None = None


class _Embed(Struct, frozen=True, kw_only=True):
    model: str
    input: str | list[str] | None = None
    prompt: str | None = None
    dimensions: int | None = None
    keep_alive: float | str | None = None
    truncate: bool | None = None


class Question(Struct, frozen=True):
    """A request with what is asked of the model itself."""

    request: Request | None
    """None: nothing is asked but to load the model, or to unload it (`keep_alive` is 0)."""
    model: str
    keep_alive: float | None = None
    """Seconds that it stays loaded after its last use; `inf` for ever, None as configured."""
    stream: bool = True


class Vectors(Struct, frozen=True):
    """Texts to embed."""

    request: EmbedRequest
    keep_alive: float | None = None


_chat = msgspec.json.Decoder(_Chat)
_generate = msgspec.json.Decoder(_Generate)
_embed = msgspec.json.Decoder(_Embed)
_options = msgspec.json.Decoder(_Options)
_object = msgspec.json.Decoder(dict[str, Raw])
_KNOWN = frozenset(_Options.__struct_fields__)


def decode_chat(body: bytes) -> Question:
    """Read a request of `/api/chat`.

    Raises:
        BadRequest: malformed, of wrong types, or contradictory; `param` says where.
    """
    asked = parse(_chat, body)
    if not asked.messages:
        return _empty(asked)
    tools = tuple(_tool(tool, i) for i, tool in enumerate(asked.tools or ()))
    return _question(asked, messages=_messages(asked.messages), tools=tools)


def decode_generate(body: bytes) -> Question:
    """Read a request of `/api/generate`.

    Raises:
        BadRequest: malformed, of wrong types, or contradictory; `param` says where.
        Unsupported: it brings a template of its own.
    """
    asked = parse(_generate, body)
    if not asked.prompt and not asked.images and not asked.suffix:
        return _empty(asked)
    if asked.template:
        raise Unsupported(
            "a template cannot come with a request",
            param="template",
            hint="write the whole prompt yourself and ask with `raw: true`",
        )
    if asked.raw or asked.suffix:
        if asked.images or asked.system:
            param = "images" if asked.images else "system"
            raise BadRequest(f"{param!r} cannot come with a raw prompt", param=param)
        return _question(asked, prompt=asked.prompt or "", suffix=asked.suffix or None)
    messages = [Message("system", asked.system)] if asked.system else []
    messages.append(Message("user", _content(asked.prompt or "", asked.images, "images")))
    return _question(asked, messages=tuple(messages))


def decode_embed(body: bytes) -> Vectors:
    """Read a request of `/api/embed` or `/api/embeddings`.

    Raises:
        BadRequest: malformed, of wrong types; `param` says where.
    """
    asked = parse(_embed, body)
    check_model(asked.model)
    given = asked.input if asked.input is not None else asked.prompt
    if given is None:
        raise missing("input")
    inputs = (given,) if isinstance(given, str) else tuple(given)
    request = EmbedRequest(asked.model, inputs, asked.dimensions)
    return Vectors(request, duration(asked.keep_alive))


def duration(given: float | str | None) -> float | None:
    """`keep_alive` in seconds: a number of them, or text such as `5m`, `1h30m`; below 0 for ever.

    Raises:
        BadRequest: it is neither.
    """
    if given is None or given == "":
        return None
    if isinstance(given, str):
        text = given.removeprefix("-")
        if re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
        elif re.fullmatch(f"(?:{_DURATION.pattern})+", text):
            pieces = _DURATION.findall(text)
            seconds = sum(_seconds(piece) for piece in pieces)
        else:
            raise BadRequest(
                f"'keep_alive' is no duration: {given[:40]!r}",
                param="keep_alive",
                hint="for example 5m, 1h30m, 0, -1",
            )
        return inf if given.startswith("-") else seconds
    if not isfinite(given):
        raise BadRequest("'keep_alive' is no number of seconds", param="keep_alive")
    return inf if given < 0 else given


def _seconds(piece: str) -> float:
    unit = piece.lstrip("0123456789.")
    return float(piece.removesuffix(unit)) * _SECONDS[unit]


# ---------------------------------------------------------------- what is asked


def _empty(asked: _Asked) -> Question:
    check_model(asked.model)
    return Question(None, asked.model, duration(asked.keep_alive), asked.stream is not False)


def _question(asked: _Asked, **asks: Any) -> Question:
    check_model(asked.model)
    raw = asked.options
    given = {} if bytes(raw) in (b"", b"null") else parse(_object, raw, "options")
    options = parse(_options, raw, "options") if given else _Options()
    more = {n: v for n, v in given.items() if n not in _KNOWN and bytes(v) != b"null"}
    if isinstance(asked, _Generate) and asked.context:
        more["context"] = Raw(b"[]")
    stream = asked.stream is not False
    request = Request(
        asked.model,
        response_format=_format(asked.format),
        sampling=_sampling(asked, options),
        stream=stream,
        include_usage=True,
        reasoning=_reasoning(asked.think),
        strict=asked.strict is True,
        extra=more,
        wire=RequestWire(DIALECT, {}),
        **asks,
    )
    return Question(request, asked.model, duration(asked.keep_alive), stream)


def _messages(messages: list[_Message]) -> tuple[Message, ...]:
    open_calls: list[ToolCall] = []
    found: list[Message] = []
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        role = _ROLES.get(message.role)
        if role is None:
            known = ", ".join(_ROLES)
            raise BadRequest(
                f"'{path}.role' must be one of {known}, not {message.role[:40]!r}",
                param=f"{path}.role",
            )
        if role == "tool":
            found.append(_result(message, open_calls))
            continue
        calls = tuple(_call(c, f"call_{i}_{k}") for k, c in enumerate(message.tool_calls or ()))
        open_calls += calls
        content: str | tuple[Part, ...] | None
        content = _content(message.content or "", message.images, f"{path}.images")
        if message.thinking:
            parts = content if isinstance(content, tuple) else (TextPart(content),)
            content = (ThinkingPart(message.thinking), *parts)
        if calls and not content:
            content = None
        found.append(Message(role, content, tool_calls=calls))
    return tuple(found)


def _call(call: _Call, id: str) -> ToolCall:
    arguments = msgspec.json.encode(call.function.arguments).decode()
    return ToolCall(call.id or id, call.function.name, arguments)


def _result(message: _Message, open_calls: list[ToolCall]) -> Message:
    """A tool's answer with the id of its call, which is no longer open."""
    name = message.tool_name or message.name
    id = message.tool_call_id
    mine = [c for c in open_calls if (c.id == id if id else name in (None, c.name))]
    if mine:
        open_calls.remove(mine[0])
        id = mine[0].id
    return Message("tool", message.content or "", tool_call_id=id or f"call_{name or 'unknown'}")


def _content(text: str, images: list[str] | None, path: str) -> str | tuple[Part, ...]:
    if not images:
        return text
    pictures = tuple(_image(data, f"{path}[{k}]") for k, data in enumerate(images))
    return (TextPart(text), *pictures) if text else pictures


def _image(data: str, path: str) -> ImagePart:
    try:
        head = b64decode(data[:64], validate=True)
    except (Base64Error, ValueError) as exc:
        raise BadRequest(f"{path!r} is not base64: {exc}", param=path) from exc
    kind = next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)
    if kind is None:
        raise BadRequest(f"{path!r} is no picture that is known (PNG, JPEG, GIF, WebP)", param=path)
    return ImagePart(ImageURL(f"data:{kind};base64,{data}"))


def _tool(tool: _Tool, i: int) -> Tool:
    if tool.type != "function":
        param = f"tools[{i}].type"
        raise BadRequest(f"{param!r} must be 'function', not {tool.type[:40]!r}", param=param)
    function = tool.function
    parameters = function.parameters
    schema = None if parameters is None else Raw(msgspec.json.encode(parameters))
    return Tool(function.name, function.description, schema)


def _format(raw: Raw) -> ResponseFormat | None:
    data = bytes(raw)
    if data in (b"", b"null", b'""'):
        return None
    if data == b'"json"':
        return ResponseFormat("json_object")
    parse(_object, raw, "format")
    return ResponseFormat("json_schema", raw, strict=True)


def _sampling(asked: _Asked, options: _Options) -> Sampling:
    for name, low, high in (("temperature", 0, inf), ("top_p", 0, 1), ("top_k", 0, 2**31 - 1)):
        value = getattr(options, name)
        if value is not None and not (low <= value <= high and isfinite(value)):
            param = f"options.{name}"
            raise BadRequest(f"{param!r} must be at least {low}, not {value}", param=param)
    stops = options.stop or ()
    found = (stops,) if isinstance(stops, str) else tuple(stop for stop in stops if stop)
    if len(found) > MAX_STOPS:
        raise BadRequest(f"'options.stop' has more than {MAX_STOPS} texts", param="options.stop")
    top = asked.top_logprobs
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        most = MAX_TOP_LOGPROBS
        raise BadRequest(f"'top_logprobs' must be 0 to {most}, not {top}", param="top_logprobs")
    limit = options.num_predict
    return Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        # Below zero is "until the model ends", or "until the context is full".
        max_tokens=limit if limit is not None and limit > 0 else None,
        stop=found,
        seed=options.seed,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logprobs=bool(asked.logprobs or top),
        top_logprobs=top,
    )


def _reasoning(think: bool | str | None) -> Reasoning | None:
    if think is None or think == "":
        return None
    if think is False:
        return Reasoning("none")
    return Reasoning(None if think is True else str(think), shown=True)
