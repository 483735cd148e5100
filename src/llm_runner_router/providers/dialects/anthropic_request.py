"""Requests in Anthropic's JSON. Pure.

Knows: the body of `POST /v1/messages`, what it cannot say, and which models think by budget.
Does not know: URLs, keys, answers.

Field names and limits from Anthropic's API reference as its Python SDK 2.13 has it.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.fidelity import Receipt, own_tools
from llm_runner_router.types import (
    SIGNERS,
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    Part,
    Reasoning,
    RedactedPart,
    RefusalPart,
    Request,
    TextPart,
    ThinkingPart,
    TokenizeRequest,
    Tool,
)

from .base import MAX_TOKENS, PLAIN, Quirks, WireRequest
from .media import data_url

MESSAGES = "anthropic_messages"

_OURS = ("fallbacks", "cache", "strict")
_LEAST_BUDGET = 1024
_BUDGETS = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16384,
    "xhigh": 32768,
    "max": 65536,
}
"""Tokens to think for an effort, on models that want a number."""
_BY_BUDGET = re.compile(
    r"claude-(3|2|instant)|claude-(opus|sonnet|haiku)-4(-[0-5](?!\d))?(-\d{8})?(?![-\d])"
)
"""Models up to 4.5: they think up to a budget. Later ones are told an effort."""
SENTENCE = "Answer with one JSON object and nothing else."
OPENING = "."
"""What the user says where a conversation begins with the assistant, which is not allowed."""

_OTHERS = tuple(b'"%b' % signer.encode() for signer in SIGNERS)
"""How the signature of another provider's model begins in a client's bytes."""

_encode = msgspec.json.Encoder().encode


def build_request(request: Request, model: str, quirks: Quirks, receipt: Receipt) -> WireRequest:
    """The request for an upstream of this dialect; a client's own of the same one is spliced.

    Raises:
        Unsupported: several choices, sound, text to fill in.
        BadRequest: arguments of a call that are no JSON.
    """
    wire = request.wire
    fields: dict[str, Any]
    if wire is not None and wire.dialect == MESSAGES:
        fields = {name: value for name, value in wire.fields.items() if name not in _OURS}
        said = bytes(fields["messages"])
        if any(other in said for other in _OTHERS):
            fields["messages"] = _own_thoughts(fields["messages"])
    else:
        fields = _fields(request, model, quirks, receipt)
    fields["model"] = model
    if request.stream:
        fields["stream"] = True
    else:
        fields.pop("stream", None)
    for name in quirks.drop:
        if fields.pop(name, None) is not None:
            receipt.dropped(name, "this host refuses it")
    return WireRequest("/messages", _encode(fields), MESSAGES)


def build_count(asked: TokenizeRequest, model: str, receipt: Receipt) -> WireRequest:
    """A request for the number of tokens of a prompt.

    Raises:
        Unsupported, BadRequest: as `build_request`.
    """
    request = Request(asked.model, asked.messages, prompt=asked.text, tools=asked.tools)
    fields = {"model": model, **_fields(request, model, PLAIN, receipt)}
    del fields["max_tokens"]
    return WireRequest("/messages/count_tokens", _encode(fields))


def _fields(request: Request, model: str, quirks: Quirks, receipt: Receipt) -> dict[str, Any]:
    if request.sampling.n != 1:
        raise Unsupported("Anthropic's dialect gives one choice", param="n", hint="ask n times")
    if request.suffix:
        raise Unsupported("Anthropic's dialect fills in no text before a `suffix`", param="suffix")
    fields: dict[str, Any] = {}
    if request.prompt is not None:
        receipt.emulated("prompt", "asked as a message of the user")
        messages: tuple[Message, ...] = (Message("user", request.prompt),)
    else:
        messages = request.messages
    system, turns = _conversation(messages, receipt)
    _sampling(request, fields, quirks, receipt)
    _tools(request, fields, receipt)
    _format(request, fields, system, receipt)
    if system:
        fields["system"] = system
    fields["messages"] = turns
    if request.reasoning is not None:
        thinking(request.reasoning, model, fields, receipt)
    if request.user is not None:
        fields["metadata"] = {"user_id": request.user}
    if request.service_tier is not None:
        _tier(request.service_tier, fields, receipt)
    for name in request.extra:
        receipt.dropped(name, "Anthropic's dialect has no such parameter")
    return fields


# ---------------------------------------------------------------- the conversation


def _own_thoughts(messages: Any) -> Any:
    """The client's messages without thoughts that others signed, which are refused here."""
    turns = msgspec.json.decode(messages)
    for turn in turns:
        if isinstance(turn["content"], list):
            turn["content"] = [
                block
                for block in turn["content"]
                if not str(block.get("signature") or "").startswith(SIGNERS)
            ]
    return [turn for turn in turns if turn["content"]]


def _conversation(
    messages: tuple[Message, ...], receipt: Receipt
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system's blocks, and turns that change sides."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        if message.name is not None:
            receipt.dropped(f"{path}.name", "turns have no names")
        blocks = _blocks(message, path, receipt)
        if message.role in ("system", "developer"):
            if turns:
                receipt.translated(path, "moved to the system's words at the beginning")
            system += blocks
            continue
        role = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if not turns and system:
        receipt.emulated("messages", "the system's words are asked by the user")
        turns, system = [{"role": "user", "content": system}], []
    if turns and turns[0]["role"] == "assistant":
        receipt.emulated("messages", "a turn of the user's was put in front")
        turns.insert(0, {"role": "user", "content": [{"type": "text", "text": OPENING}]})
    _trim(turns, len(messages) - 1, receipt)
    return system, turns


def _trim(turns: list[dict[str, Any]], last: int, receipt: Receipt) -> None:
    """An answer that is to be continued may not end in white space."""
    if not turns or turns[-1]["role"] != "assistant":
        return
    block = turns[-1]["content"][-1]
    if block["type"] == "text" and block["text"] != block["text"].rstrip():
        block["text"] = block["text"].rstrip()
        receipt.translated(f"messages[{last}].content", "white space at its end is left out")
        if not block["text"]:
            turns[-1]["content"].pop()
        if not turns[-1]["content"]:
            turns.pop()


def _blocks(message: Message, path: str, receipt: Receipt) -> list[dict[str, Any]]:
    if message.role in ("tool", "function"):
        return [_result(message, path, receipt)]
    content = message.content
    blocks: list[dict[str, Any]] = []
    if isinstance(content, str):
        blocks = [{"type": "text", "text": content}] if content else []
    for k, part in enumerate(content if isinstance(content, tuple) else ()):
        block = _block(part, f"{path}.content[{k}]", receipt)
        if block is not None:
            blocks.append(block)
    for k, call in enumerate(message.tool_calls):
        use: dict[str, Any] = {"type": "tool_use", "id": call.id, "name": call.name}
        where = f"{path}.tool_calls[{k}].function.arguments"
        blocks.append(
            _marked({**use, "input": call_input(call.arguments, where)}, call.cache_control)
        )
    return blocks


def call_input(arguments: str, path: str) -> Raw:
    """The arguments of a call, which must be a JSON object.

    Raises:
        BadRequest: they are none; names `path`.
    """
    try:
        value = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError as exc:
        raise BadRequest(f"the arguments of a call are not JSON: {exc}", param=path) from exc
    if not isinstance(value, dict):
        raise BadRequest("the arguments of a call are no JSON object", param=path)
    return Raw((arguments or "{}").encode())


def _result(message: Message, path: str, receipt: Receipt) -> dict[str, Any]:
    if not message.tool_call_id:
        raise Unsupported(
            "an answer of a function without the id of its call cannot be said in Anthropic's"
            " dialect",
            param=path,
            hint="use `tools`, `tool_calls` and messages with the role `tool`",
        )
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": message.tool_call_id}
    if isinstance(message.content, str):
        block["content"] = message.content
    elif message.content:
        parts = enumerate(message.content)
        found = (_block(part, f"{path}.content[{k}]", receipt) for k, part in parts)
        block["content"] = [inner for inner in found if inner is not None]
    if message.is_error:
        block["is_error"] = True
    return _marked(block, message.cache_control)


def _block(part: Part, path: str, receipt: Receipt) -> dict[str, Any] | None:
    """One block; None for what is empty or cannot be said."""
    if isinstance(part, TextPart):
        # An empty text is refused there.
        block = {"type": "text", "text": part.text}
        return _marked(block, part.cache_control) if part.text else None
    if isinstance(part, ImagePart):
        if part.image_url.detail not in (None, "auto"):
            receipt.dropped(f"{path}.image_url.detail", "images are looked at in one way only")
        source = _source(part.image_url.url, f"{path}.image_url.url")
        return _marked({"type": "image", "source": source}, part.cache_control)
    if isinstance(part, FilePart):
        return _document(part, path)
    if isinstance(part, ThinkingPart):
        if part.signature is None or part.signature.startswith(SIGNERS):
            receipt.dropped(path, "thoughts without their provider's signature are refused")
            return None
        return {"type": "thinking", "thinking": part.thinking, "signature": part.signature}
    if isinstance(part, RedactedPart):
        return {"type": "redacted_thinking", "data": part.data}
    if isinstance(part, RefusalPart):
        receipt.translated(path, "a refusal is said as text")
        return {"type": "text", "text": part.refusal} if part.refusal else None
    if isinstance(part, AudioPart):
        raise Unsupported("Anthropic's dialect takes no sound", param=path)
    receipt.dropped(path, f"`{part.kind}` is known to the dialect it came from only")
    return None


def _marked(block: dict[str, Any], cache_control: dict[str, Any] | None) -> dict[str, Any]:
    return block if cache_control is None else {**block, "cache_control": cache_control}


def _source(url: str, path: str) -> dict[str, Any]:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    found = data_url(url, path)
    return {"type": "base64", "media_type": found.media_type, "data": found.base64}


def _document(part: FilePart, path: str) -> dict[str, Any]:
    file = part.file
    block: dict[str, Any] = {"type": "document"}
    if file.file_data is not None:
        found = data_url(file.file_data, f"{path}.file.file_data")
        if found.media_type.startswith("text/"):
            source = {"type": "text", "media_type": "text/plain", "data": found.text(path)}
        else:
            source = {"type": "base64", "media_type": found.media_type, "data": found.base64}
    elif file.file_url is not None:
        source = {"type": "url", "url": file.file_url}
    elif file.file_id is not None:
        source = {"type": "file", "file_id": file.file_id}
    else:
        raise BadRequest("a document without data", param=f"{path}.file")
    block["source"] = source
    if file.filename is not None:
        block["title"] = file.filename
    if part.citations:
        block["citations"] = {"enabled": True}
    return _marked(block, part.cache_control)


# ---------------------------------------------------------------- how it is to answer


def _sampling(request: Request, fields: dict[str, Any], quirks: Quirks, receipt: Receipt) -> None:
    draw = request.sampling
    fields["max_tokens"] = draw.max_tokens or quirks.max_output or MAX_TOKENS
    if draw.max_tokens is None:
        receipt.emulated("max_tokens", f"a limit is needed there: {fields['max_tokens']}")
    if draw.temperature is not None:
        fields["temperature"] = min(draw.temperature, 1.0)
        if draw.temperature > 1:
            receipt.translated("temperature", "1 is the highest there")
    for name in ("top_p", "top_k"):
        if getattr(draw, name) is not None:
            fields[name] = getattr(draw, name)
    if draw.stop:
        stops = [stop for stop in draw.stop if stop.strip()]
        if len(stops) < len(draw.stop):
            receipt.dropped("stop", "sequences of nothing but white space are refused there")
        if stops:
            fields["stop_sequences"] = stops
    lost = [
        n for n in ("seed", "presence_penalty", "frequency_penalty") if getattr(draw, n) is not None
    ]
    lost += [*(["logprobs"] if draw.logprobs else ()), *(["echo"] if request.echo else ())]
    for name in lost:
        receipt.dropped(name, "Anthropic's dialect has nothing like it")


def _tools(request: Request, fields: dict[str, Any], receipt: Receipt) -> None:
    tools = own_tools(request, receipt)
    if not tools:
        return
    fields["tools"] = [_tool(tool) for tool in tools]
    choice = request.tool_choice
    told: dict[str, Any] | None = None
    if choice is not None and choice.startswith("function:"):
        told = {"type": "tool", "name": choice.removeprefix("function:")}
    elif choice is not None:
        told = {"type": {"required": "any"}.get(choice, choice)}
    if request.parallel_tool_calls is not None and (told or {}).get("type") != "none":
        told = told or {"type": "auto"}
        told["disable_parallel_tool_use"] = not request.parallel_tool_calls
    if told is not None:
        fields["tool_choice"] = told


def _tool(tool: Tool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        told["description"] = tool.description
    told["input_schema"] = tool.parameters or {"type": "object", "properties": {}}
    if tool.strict is not None:
        told["strict"] = tool.strict
    return _marked(told, tool.cache_control)


def _format(
    request: Request, fields: dict[str, Any], system: list[dict[str, Any]], receipt: Receipt
) -> None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return
    if wanted.type == "json_object" and wanted.schema is None:
        receipt.emulated("response_format", "the model is asked for JSON in words")
        system.append({"type": "text", "text": SENTENCE})
        return
    schema = msgspec.json.decode(wanted.schema or b"{}")
    shut = closed(schema)
    if shut != schema:
        receipt.translated("response_format", "objects may have no other than the named fields")
    output = fields.setdefault("output_config", {})
    output["format"] = {"type": "json_schema", "schema": shut}


_VALUES = frozenset(("enum", "const", "default", "examples"))
"""Keywords of a schema whose values are no schemas."""


def closed(schema: Any) -> Any:
    """`schema` with objects closed, which is a condition there."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: v if key in _VALUES else closed(v) for key, v in schema.items()}
    if schema.get("type") == "object":
        found["additionalProperties"] = False
    return found


def thinking(wanted: Reasoning, model: str, fields: dict[str, Any], receipt: Receipt) -> None:
    """Say in `fields`, which hold the rest of the request, how much `model` is to think."""
    if wanted.effort == "none" or wanted.budget == 0:
        fields["thinking"] = {"type": "disabled"}
        return
    told: dict[str, Any]
    if not _BY_BUDGET.search(model) and wanted.budget is None:
        told = {"type": "adaptive"}
        if wanted.effort is not None:
            effort = "low" if wanted.effort == "minimal" else wanted.effort
            fields.setdefault("output_config", {})["effort"] = effort
            if effort != wanted.effort:
                receipt.translated("reasoning_effort", f"`{effort}` is the least there")
    else:
        budget = wanted.budget or _BUDGETS.get(wanted.effort or "medium", _BUDGETS["medium"])
        if wanted.budget is None:
            receipt.translated("reasoning_effort", f"up to {budget} tokens of thought")
        most = fields["max_tokens"] - 1
        if most < _LEAST_BUDGET:
            receipt.dropped("reasoning_effort", f"max_tokens is too small to think: {most + 1}")
            return
        if not _LEAST_BUDGET <= budget <= most:
            budget = max(_LEAST_BUDGET, min(budget, most))
            receipt.translated("reasoning_effort", f"up to {budget} tokens of thought fit")
        told = {"type": "enabled", "budget_tokens": budget}
    if (fields.get("tool_choice") or {}).get("type") in ("any", "tool"):
        receipt.dropped("reasoning_effort", "a model that must call a tool cannot think before")
        fields.get("output_config", {}).pop("effort", None)
        return
    if wanted.shown is not None:
        told["display"] = "summarized" if wanted.shown else "omitted"
    fields["thinking"] = told
    for name in ("temperature", "top_k"):
        if fields.pop(name, None) is not None:
            receipt.dropped(name, "a model that thinks draws in its own way")


def _tier(tier: str, fields: dict[str, Any], receipt: Receipt) -> None:
    if tier == "auto":
        fields["service_tier"] = "auto"
    elif tier in ("default", "standard_only"):
        fields["service_tier"] = "standard_only"
    else:
        receipt.dropped("service_tier", f"Anthropic's dialect has no tier {tier[:40]!r}")
