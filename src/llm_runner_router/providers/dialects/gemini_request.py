"""Requests in the JSON of Gemini's API. Pure.

Knows: the bodies of `generateContent` and `batchEmbedContents`, what they cannot say, and how a
model is told how much to think. Does not know: conversations (`gemini_contents.py`), keys, answers.

Field names and limits from Google's reference of `v1beta` as its Python SDK 3.6 has it.
"""

from __future__ import annotations

import base64
import re
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Raw

from llm_runner_router.errors import Unsupported
from llm_runner_router.fidelity import Receipt, own_tools
from llm_runner_router.types import (
    EmbedRequest,
    Message,
    Reasoning,
    Request,
    TokenizeRequest,
    Tool,
)

from .base import PLAIN, Quirks, WireRequest
from .gemini_contents import conversation
from .gemini_schema import overlooked, to_google

GENERATE = "gemini_generate"
ELSEWHERE = b"llmrr:"
"""What a signature begins with, once its base64 is read, that another provider made: surfaces give
those to clients of this dialect, and Google is not shown them."""

_OURS = ("fallbacks", "cache", "strict", "model")
_PASSED = {
    "safetySettings": "safetySettings",
    "safety_settings": "safetySettings",
    "cachedContent": "cachedContent",
    "cached_content": "cachedContent",
}
"""Parameters of this dialect that clients of others may send by name."""
_TIERS = {"auto": None, "default": "standard", "flex": "flex", "priority": "priority"}
MAX_STOPS = 5
_UNTHINKING = re.compile(r"gemini-(1|2\.0)|gemma|learnlm|embedding")
_BY_BUDGET = re.compile(r"gemini-2\.5|gemini-robotics-er-1\.")
"""Models that are told a number of tokens to think; later ones are told a level."""
_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
"""Google's own table for its endpoint that speaks OpenAI's dialect."""
_LEVELS = {name: name.upper() for name in ("minimal", "low", "medium", "high", "xhigh")}
_LIMITS = (("pro", 128, 32768), ("lite", 512, 24576), ("", 1, 24576))
"""The least and the most tokens of thought by a word in the model's name."""

_encode = msgspec.json.Encoder().encode


def resource(model: str) -> str:
    """The model's name in a path: `models/…`."""
    return model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"


def build_request(request: Request, model: str, quirks: Quirks, receipt: Receipt) -> WireRequest:
    """The request for an upstream of this dialect; a client's own of the same one is spliced.

    Raises:
        Unsupported: text to fill in, files of another provider's.
        BadRequest: arguments of a call that are no JSON, answers to no call.
    """
    wire = request.wire
    fields: dict[str, Any]
    if wire is not None and wire.dialect == GENERATE:
        fields = {name: value for name, value in wire.fields.items() if name not in _OURS}
        fields["contents"] = _own_thoughts(wire.fields.get("contents", Raw(b"[]")))
    else:
        fields = _fields(request, model, quirks, receipt)
    for name in quirks.drop:
        config = fields.get("generationConfig")
        lost = fields.pop(name, None)
        if lost is None and isinstance(config, dict):
            lost = config.pop(name, None)
        if lost is not None:
            receipt.dropped(name, "this host refuses it")
    verb = "streamGenerateContent?alt=sse" if request.stream else "generateContent"
    return WireRequest(f"/{quote(resource(model))}:{verb}", _encode(fields), GENERATE)


def build_count(asked: TokenizeRequest, model: str, receipt: Receipt) -> WireRequest:
    """A request for the number of tokens of a prompt.

    Raises:
        Unsupported, BadRequest: as `build_request`.
    """
    request = Request(asked.model, asked.messages, prompt=asked.text, tools=asked.tools)
    name = resource(model)
    whole = {"model": name, **_fields(request, model, PLAIN, receipt)}
    body = _encode({"generateContentRequest": whole})
    return WireRequest(f"/{quote(name)}:countTokens", body)


def build_embed(request: EmbedRequest, model: str) -> WireRequest:
    """A request for embeddings, one for each text.

    Raises:
        Unsupported: tokens instead of text.
    """
    name = resource(model)
    requests = []
    for i, text in enumerate(request.inputs):
        if not isinstance(text, str):
            raise Unsupported("Gemini's dialect embeds texts, not tokens", param=f"input[{i}]")
        one: dict[str, Any] = {"model": name, "content": {"parts": [{"text": text}]}}
        if request.task is not None:
            one["taskType"] = request.task
        if request.dimensions is not None:
            one["outputDimensionality"] = request.dimensions
        requests.append(one)
    body = _encode({"requests": requests})
    return WireRequest(f"/{quote(name)}:batchEmbedContents", body, "gemini_embed")


def _own_thoughts(contents: Raw) -> Any:
    """The client's contents without what another provider signed."""
    mark = base64.b64encode(ELSEWHERE)[:8]  # six bytes are eight letters, whatever follows
    if b'"' + mark not in bytes(contents):
        return contents
    turns = msgspec.json.decode(contents)
    for turn in turns if isinstance(turns, list) else ():
        kept = []
        for part in turn.get("parts") or ():
            signature = part.get("thoughtSignature") or part.get("thought_signature") or ""
            if signature.encode().startswith(mark):
                part = {k: v for k, v in part.items() if "ignature" not in k}
                if part.get("thought") or not part.get("text", True):
                    continue
            kept.append(part)
        turn["parts"] = kept
    return turns


def _fields(request: Request, model: str, quirks: Quirks, receipt: Receipt) -> dict[str, Any]:
    if request.suffix:
        raise Unsupported("Gemini's dialect fills in no text before a `suffix`", param="suffix")
    fields: dict[str, Any] = {}
    if request.prompt is not None:
        receipt.emulated("prompt", "asked as a message of the user")
        messages: tuple[Message, ...] = (Message("user", request.prompt),)
    else:
        messages = request.messages
    system, contents = conversation(messages, model, receipt)
    if system:
        fields["systemInstruction"] = {"parts": system}
    fields["contents"] = contents
    _tools(request, quirks, fields, receipt)
    config = _sampling(request, receipt)
    _format(request, quirks, config, receipt)
    if request.reasoning is not None:
        _thinking(request.reasoning, model, config, receipt)
    if config:
        fields["generationConfig"] = config
    if request.service_tier is not None:
        if request.service_tier not in _TIERS:
            tier = request.service_tier[:40]
            receipt.dropped("service_tier", f"Gemini's dialect has no tier {tier!r}")
        elif _TIERS[request.service_tier] is not None:
            fields["serviceTier"] = _TIERS[request.service_tier]
    if request.user is not None:
        receipt.dropped("user", "Gemini's dialect has no place for the user's name")
    for name, value in request.extra.items():
        if name in _PASSED:
            fields[_PASSED[name]] = value
        else:
            receipt.dropped(name, "Gemini's dialect has no such parameter")
    return fields


# ---------------------------------------------------------------- how it is to answer


def _sampling(request: Request, receipt: Receipt) -> dict[str, Any]:
    draw = request.sampling
    config: dict[str, Any] = {}
    for name, theirs in (
        ("temperature", "temperature"),
        ("top_p", "topP"),
        ("top_k", "topK"),
        ("max_tokens", "maxOutputTokens"),
        ("presence_penalty", "presencePenalty"),
        ("frequency_penalty", "frequencyPenalty"),
    ):
        value = getattr(draw, name)
        if value is not None:
            config[theirs] = value
    if draw.stop:
        config["stopSequences"] = draw.stop[:MAX_STOPS]
        if len(draw.stop) > MAX_STOPS:
            receipt.dropped("stop", f"{MAX_STOPS} sequences are the most there")
    if draw.seed is not None:
        config["seed"] = draw.seed
        if not -(2**31) <= draw.seed < 2**31:
            config["seed"] = draw.seed % 2**31
            receipt.translated("seed", f"a seed has 32 bits there: {config['seed']}")
    if draw.n != 1:
        config["candidateCount"] = draw.n
    if draw.logprobs:
        config["responseLogprobs"] = True
        if draw.top_logprobs:
            config["logprobs"] = draw.top_logprobs
    if request.echo:
        receipt.dropped("echo", "Gemini's dialect has nothing like it")
    return config


def _tools(request: Request, quirks: Quirks, fields: dict[str, Any], receipt: Receipt) -> None:
    tools = own_tools(request, receipt)
    if not tools:
        return
    told = [_tool(tool, f"tools[{i}]", quirks, receipt) for i, tool in enumerate(tools)]
    fields["tools"] = [{"functionDeclarations": told}]
    choice = request.tool_choice
    calling: dict[str, Any] = {}
    if choice is not None and choice.startswith("function:"):
        calling = {"mode": "ANY", "allowedFunctionNames": [choice.removeprefix("function:")]}
    elif choice is not None:
        calling = {"mode": {"required": "ANY"}.get(choice, choice.upper())}
    if calling.get("mode", "AUTO") == "AUTO" and any(tool.strict for tool in tools):
        calling = {"mode": "VALIDATED"}
        if not all(tool.strict for tool in tools):
            receipt.translated("tools", "the calls of all of them are held to their schemas")
    if calling:
        fields["toolConfig"] = {"functionCallingConfig": calling}
    if request.parallel_tool_calls is False:
        receipt.dropped("parallel_tool_calls", "a model may always make several calls there")


def _tool(tool: Tool, path: str, quirks: Quirks, receipt: Receipt) -> dict[str, Any]:
    if tool.cache_control is not None:
        receipt.emulated(f"{path}.cache_control", "prompts are cached unasked")
    told: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        told["description"] = tool.description
    if tool.parameters is None:
        return told
    where = f"{path}.function.parameters"
    if quirks.json_schema:
        told["parametersJsonSchema"] = _noted(tool.parameters, where, receipt)
    else:
        written = to_google(tool.parameters, where, receipt)
        # An object without properties is refused there; a function without parameters is not.
        if written.get("properties") or written.get("type") != "OBJECT":
            told["parameters"] = written
    return told


def _noted(schema: Raw, path: str, receipt: Receipt) -> Raw:
    ignored = overlooked(msgspec.json.decode(schema))
    if ignored:
        words = ", ".join(sorted(ignored)[:20])
        receipt.translated(path, f"keywords that are not looked at there: {words}")
    return schema


def _format(request: Request, quirks: Quirks, config: dict[str, Any], receipt: Receipt) -> None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return
    config["responseMimeType"] = "application/json"
    if wanted.schema is None:
        return
    if quirks.json_schema:
        config["responseJsonSchema"] = _noted(wanted.schema, "response_format", receipt)
    else:
        config["responseSchema"] = to_google(wanted.schema, "response_format", receipt)


def _thinking(wanted: Reasoning, model: str, config: dict[str, Any], receipt: Receipt) -> None:
    none = wanted.effort == "none" or wanted.budget == 0
    if _UNTHINKING.search(model):
        if not none:
            receipt.dropped("reasoning_effort", "this model does not think")
        return
    told: dict[str, Any] = {}
    if wanted.budget is not None or _BY_BUDGET.search(model):
        told = _budget(wanted, model, receipt)
    elif wanted.effort == "none":
        told["thinkingLevel"] = "MINIMAL" if re.search("flash|lite", model) else "LOW"
        receipt.translated("reasoning_effort", "this model always thinks: as little as it can")
    elif wanted.effort is not None:
        told["thinkingLevel"] = _LEVELS.get(wanted.effort, "XHIGH")
        if wanted.effort not in _LEVELS:
            receipt.translated("reasoning_effort", "`xhigh` is the most there")
    # Who gives a number of tokens expects to see what they were spent on.
    shown = wanted.budget is not None if wanted.shown is None else wanted.shown
    if shown and not none:
        told["includeThoughts"] = True
    if told:
        config["thinkingConfig"] = told


def _budget(wanted: Reasoning, model: str, receipt: Receipt) -> dict[str, Any]:
    budget = wanted.budget
    if budget is None:
        if wanted.effort is None:
            return {}
        budget = 0 if wanted.effort == "none" else _BUDGETS.get(wanted.effort, 24576)
        if budget:
            receipt.translated("reasoning_effort", f"up to {budget} tokens of thought")
    if _BY_BUDGET.search(model) is None:
        return {"thinkingBudget": budget}
    word, least, most = next(row for row in _LIMITS if row[0] in model)
    if budget == 0 and word != "pro":
        return {"thinkingBudget": 0}
    if not least <= budget <= most:
        budget = max(least, min(budget, most))
        receipt.translated("reasoning_effort", f"{budget} tokens of thought is the nearest there")
    return {"thinkingBudget": budget}
