"""Requests in the JSON of Amazon Bedrock's Converse API. Pure.

Knows: the body of `POST /model/{modelId}/converse`, what it cannot say, and what families of models
take beside it. Does not know: URLs, keys, answers, how a conversation is written
(`bedrock_contents.py`).

Names and limits from the model of the service `bedrock-runtime` in botocore 1.44.
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import msgspec

from llm_runner_router.errors import Unsupported
from llm_runner_router.fidelity import Receipt, own_tools
from llm_runner_router.types import (
    SIGNERS,
    Message,
    Reasoning,
    Request,
    Sampling,
    TokenizeRequest,
    Tool,
)

from .anthropic_request import SENTENCE, closed, thinking
from .base import MAX_TOKENS, PLAIN, Quirks, WireRequest
from .bedrock_contents import cache_point, conversation

CONVERSE = "bedrock_converse"

_OURS = ("fallbacks", "cache", "strict")
_VERSION = re.compile(r"-v\d+(:\d+)*(:\w+)?$")
_METADATA = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,.-]{1,256}")
_OTHERS = tuple(b'"%b' % signer.encode() for signer in SIGNERS)
"""How the signature of another provider's model begins in a client's bytes."""
_SEALED = tuple(
    b64encode(signer.encode()).rstrip(b"=")[: len(signer) * 8 // 6] for signer in SIGNERS
)
"""The same for sealed thoughts, which clients of this dialect have as base64 of that."""

_encode = msgspec.json.Encoder().encode


def build_request(request: Request, model: str, quirks: Quirks, receipt: Receipt) -> WireRequest:
    """The request for an upstream of this dialect; a client's own of the same one is spliced.

    Raises:
        Unsupported: several choices, text to fill in, pictures and documents by their address.
        BadRequest: arguments of a call that are no JSON, broken base64.
    """
    wire = request.wire
    fields: dict[str, Any]
    if wire is not None and wire.dialect == CONVERSE:
        fields = {name: value for name, value in wire.fields.items() if name not in _OURS}
        said = bytes(fields.get("messages", b""))
        if any(other in said for other in (*_OTHERS, *_SEALED)):
            fields["messages"] = _own_thoughts(said)
    else:
        fields = _fields(request, model, quirks, receipt)
    for name in quirks.drop:
        if fields.pop(name, None) is not None:
            receipt.dropped(name, "this host refuses it")
    verb = "converse-stream" if request.stream else "converse"
    return WireRequest(_path(model, verb), _encode(fields), CONVERSE)


def build_count(asked: TokenizeRequest, model: str, receipt: Receipt) -> WireRequest:
    """A request for the number of tokens of a prompt.

    Raises:
        Unsupported, BadRequest: as `build_request`.
    """
    request = Request(asked.model, asked.messages, prompt=asked.text, tools=asked.tools)
    fields = _fields(request, model, PLAIN, receipt)
    return WireRequest(_path(model, "count-tokens"), _encode({"input": {"converse": fields}}))


def _path(model: str, verb: str) -> str:
    return f"/model/{quote(model, safe='')}/{verb}"


def _own_thoughts(messages: bytes) -> Any:
    """The client's messages without thoughts that others signed, which are refused here."""
    turns: list[dict[str, Any]] = []
    for turn in msgspec.json.decode(messages):
        content = [block for block in turn["content"] if not _foreign(block)]
        if turns and turns[-1]["role"] == turn["role"]:  # the one between had nothing else
            turns[-1]["content"] += content
        elif content:
            turns.append({**turn, "content": content})
    return turns


def _foreign(block: Any) -> bool:
    told = block.get("reasoningContent") or {}
    sealed = str(told.get("redactedContent") or "").encode()
    thought = told.get("reasoningText") or {}
    return sealed.startswith(_SEALED) or str(thought.get("signature") or "").startswith(SIGNERS)


def _fields(request: Request, model: str, quirks: Quirks, receipt: Receipt) -> dict[str, Any]:
    if request.sampling.n != 1:
        raise Unsupported("Bedrock's dialect gives one choice", param="n", hint="ask n times")
    if request.suffix:
        raise Unsupported("Bedrock's dialect fills in no text before a `suffix`", param="suffix")
    if request.prompt is not None:
        receipt.emulated("prompt", "asked as a message of the user")
        messages: tuple[Message, ...] = (Message("user", request.prompt),)
    else:
        messages = request.messages
    system, turns = conversation(messages, receipt, signed="anthropic." in model)
    fields: dict[str, Any] = {"messages": turns}
    _sampling(request, model, fields, receipt)
    _tools(request, fields, turns, receipt)
    _format(request, fields, system, receipt)
    if system:
        fields["system"] = system
    if request.reasoning is not None:
        _reasoning(request.reasoning, model, fields, quirks, receipt)
    _rest(request, fields, receipt)
    return fields


# ---------------------------------------------------------------- how it is to answer


def _sampling(request: Request, model: str, fields: dict[str, Any], receipt: Receipt) -> None:
    draw = request.sampling
    config: dict[str, Any] = {}
    if draw.max_tokens is not None:
        config["maxTokens"] = draw.max_tokens
    if draw.temperature is not None:
        config["temperature"] = min(draw.temperature, 1.0)
        if draw.temperature > 1:
            receipt.translated("temperature", "1 is the highest there")
    if draw.top_p is not None:
        config["topP"] = draw.top_p
    stops = [stop for stop in draw.stop if stop.strip()]
    if len(stops) < len(draw.stop):
        receipt.dropped("stop", "sequences of nothing but white space are refused there")
    if stops:
        config["stopSequences"] = stops
        if "anthropic." in model:  # the others do not tell which one it was
            fields["additionalModelResponseFieldPaths"] = ["/stop_sequence"]
    if config:
        fields["inferenceConfig"] = config
    if draw.top_k is not None:
        _top_k(draw.top_k, model, fields, receipt)
    _lost(draw, request.echo, receipt)


def _top_k(top_k: int, model: str, fields: dict[str, Any], receipt: Receipt) -> None:
    """Converse has none; some families take it among their own parameters."""
    if "anthropic." in model:
        fields["additionalModelRequestFields"] = {"top_k": top_k}
    elif "amazon.nova" in model:
        fields["additionalModelRequestFields"] = {"inferenceConfig": {"topK": top_k}}
    else:
        receipt.dropped("top_k", "Bedrock's dialect has none for this model")


def _lost(draw: Sampling, echo: bool, receipt: Receipt) -> None:
    names = ("seed", "presence_penalty", "frequency_penalty")
    lost = [name for name in names if getattr(draw, name) is not None]
    lost += [*(["logprobs"] if draw.logprobs else ()), *(["echo"] if echo else ())]
    for name in lost:
        receipt.dropped(name, "Bedrock's dialect has nothing like it")


def _tools(
    request: Request, fields: dict[str, Any], turns: list[dict[str, Any]], receipt: Receipt
) -> None:
    tools = own_tools(request, receipt)
    called = _called(turns)
    choice = request.tool_choice
    if choice == "none" and tools:
        if not called:
            receipt.emulated("tool_choice", "`none` is not known there: the tools are left out")
            return
        receipt.dropped("tool_choice", "`none` is not known there, and there were calls before")
        choice = None
    missing = [] if tools else called
    if missing:
        receipt.emulated("tools", "tools that were called before must be named there")
        tools = [Tool(name) for name in missing]
    if not tools:
        return
    told: list[dict[str, Any]] = []
    for tool in tools:
        told.append({"toolSpec": _tool(tool)})
        told += cache_point(tool.cache_control)
    config: dict[str, Any] = {"tools": told}
    if choice is not None and choice.startswith("function:"):
        config["toolChoice"] = {"tool": {"name": choice.removeprefix("function:")}}
    elif choice in ("auto", "required"):
        config["toolChoice"] = {"any" if choice == "required" else "auto": {}}
    fields["toolConfig"] = config
    if request.parallel_tool_calls is False:
        receipt.dropped("parallel_tool_calls", "Bedrock's dialect cannot forbid them")


def _called(turns: list[dict[str, Any]]) -> list[str]:
    """The names of the tools that were called, each once."""
    blocks = (block for turn in turns for block in turn["content"])
    names = [block["toolUse"]["name"] for block in blocks if "toolUse" in block]
    return list(dict.fromkeys(names))


def _tool(tool: Tool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": tool.name}
    if tool.description:
        told["description"] = tool.description
    told["inputSchema"] = {"json": tool.parameters or {"type": "object", "properties": {}}}
    if tool.strict is not None:
        told["strict"] = tool.strict
    return told


def _format(
    request: Request, fields: dict[str, Any], system: list[dict[str, Any]], receipt: Receipt
) -> None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return
    if wanted.type == "json_object" and wanted.schema is None:
        receipt.emulated("response_format", "the model is asked for JSON in words")
        system.append({"text": SENTENCE})
        return
    schema = msgspec.json.decode(wanted.schema or b"{}")
    shut = closed(schema)
    if shut != schema:
        receipt.translated("response_format", "objects may have no other than the named fields")
    told: dict[str, Any] = {"schema": _encode(shut).decode()}
    if wanted.name:
        told["name"] = wanted.name
    form = {"type": "json_schema", "structure": {"jsonSchema": told}}
    fields.setdefault("outputConfig", {})["textFormat"] = form


def _reasoning(
    wanted: Reasoning, model: str, fields: dict[str, Any], quirks: Quirks, receipt: Receipt
) -> None:
    """Models of Anthropic's think as at home; others are told an effort."""
    if "anthropic." in model:
        _anthropic(wanted, model, fields, quirks, receipt)
        return
    if wanted.budget is not None:
        receipt.dropped("reasoning_budget", "Bedrock's dialect has none for this model")
    effort = wanted.effort
    if effort is None:
        return
    if effort == "none":
        receipt.dropped("reasoning_effort", "Bedrock's dialect cannot switch thinking off")
        return
    if effort == "minimal":
        effort = "low"
        receipt.translated("reasoning_effort", "`low` is the least there")
    fields.setdefault("outputConfig", {})["effort"] = effort


def _anthropic(
    wanted: Reasoning, model: str, fields: dict[str, Any], quirks: Quirks, receipt: Receipt
) -> None:
    """What Anthropic's own format would say, moved to where Converse takes it."""
    config = fields.get("inferenceConfig", {})
    more = fields.get("additionalModelRequestFields", {})
    limit = config.get("maxTokens") or quirks.max_output or MAX_TOKENS
    told: dict[str, Any] = {"max_tokens": limit, **more}
    if "temperature" in config:
        told["temperature"] = config["temperature"]
    choice = fields.get("toolConfig", {}).get("toolChoice", {})
    told["tool_choice"] = {"type": next(iter(choice), "auto")}
    thinking(wanted, _VERSION.sub("", model.rpartition("anthropic.")[2]), told, receipt)
    if told.get("thinking", {}).get("type") == "enabled" and "maxTokens" not in config:
        receipt.emulated("max_tokens", f"thinking needs a limit: {limit}")
        config["maxTokens"] = limit
    if "temperature" not in told:
        config.pop("temperature", None)
    effort = told.get("output_config", {}).get("effort")
    if effort is not None:
        fields.setdefault("outputConfig", {})["effort"] = effort
    more = {name: told[name] for name in ("top_k", "thinking") if name in told}
    for name, value in (("inferenceConfig", config), ("additionalModelRequestFields", more)):
        fields.pop(name, None)
        if value:
            fields[name] = value


def _rest(request: Request, fields: dict[str, Any], receipt: Receipt) -> None:
    if request.user is not None:
        if _METADATA.fullmatch(request.user):
            fields["requestMetadata"] = {"user_id": request.user}
            receipt.translated("user", "put among the request's metadata")
        else:
            receipt.dropped("user", "metadata cannot have such characters there")
    tier = request.service_tier
    if tier in ("default", "flex", "priority", "reserved"):
        fields["serviceTier"] = {"type": tier}
    elif tier not in (None, "auto"):
        receipt.dropped("service_tier", f"Bedrock's dialect has no tier {tier[:40]!r}")
    for name in request.extra:
        receipt.dropped(name, "Bedrock's dialect has no such parameter")
