"""Requests in Cohere's JSON. Pure.

Knows: the bodies of `POST /v2/chat` and `/v2/embed`, and what they cannot say. Does not know: URLs,
keys, answers, reranking (`rerank.py`).

Field names and limits from Cohere's API reference as its Python SDK 7.3.1 has it. A field that is
not in there is answered with 422, so nothing goes out on the off chance.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import msgspec
from msgspec import Raw

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.fidelity import Receipt, own_tools
from llm_runner_router.types import (
    AudioPart,
    EmbedRequest,
    FilePart,
    ImagePart,
    Mark,
    Message,
    Part,
    Reasoning,
    RedactedPart,
    RefusalPart,
    Request,
    Sampling,
    TextPart,
    ThinkingPart,
    Tool,
)

from .base import Quirks, WireRequest
from .media import data_url

COHERE = "cohere_chat"
MOST_INPUTS = 96
"""Texts of one request for vectors."""

_OURS = ("fallbacks", "cache", "strict")
_PASSED = frozenset(
    ("documents", "citation_options", "safety_mode", "priority", "strict_tools", "thinking")
)
"""Cohere's own parameters, which clients of other formats may send under their names."""
_MOST_STOPS = 5
_MOST_K = 500
_SEEDS = 2**63
_RANGES = (("top_p", "p", 0.01, 0.99), ("top_k", "k", 0, _MOST_K))
_PENALTIES = ("frequency_penalty", "presence_penalty")
_BUDGETS = {"minimal": 512, "low": 2048, "medium": 8192}
"""Tokens to think for an effort: there is a switch and a budget. `high` is the switch alone, as at
Cohere's own endpoint for OpenAI's format; a higher effort has no limit either."""
_TASKS = {
    "RETRIEVAL_QUERY": "search_query",
    "QUESTION_ANSWERING": "search_query",
    "FACT_VERIFICATION": "search_query",
    "CODE_RETRIEVAL_QUERY": "search_query",
    "RETRIEVAL_DOCUMENT": "search_document",
    "CLASSIFICATION": "classification",
    "CLUSTERING": "clustering",
    "SEMANTIC_SIMILARITY": "clustering",
}
_DOCUMENT = "search_document"
"""What a text is taken for if nobody says: most vectors are made to be searched."""
_ANYTHING = Raw(b'{"type":"object","properties":{}}')

_encode = msgspec.json.Encoder().encode


def build_request(request: Request, model: str, quirks: Quirks, receipt: Receipt) -> WireRequest:
    """The request for an upstream of this dialect; a client's own of the same one is spliced.

    Raises:
        Unsupported: several choices, sound, PDFs, text to fill in, a schema together with tools.
        BadRequest: a document without data, or in broken base64.
    """
    wire = request.wire
    fields: dict[str, Any]
    if wire is not None and wire.dialect == COHERE:
        fields = {name: value for name, value in wire.fields.items() if name not in _OURS}
    else:
        fields = _fields(request, receipt)
    fields["model"] = model
    fields["stream"] = request.stream
    for name in quirks.drop:
        if fields.pop(name, None) is not None:
            receipt.dropped(name, "this host refuses it")
    return WireRequest("/chat", _encode(fields), COHERE)


def _fields(request: Request, receipt: Receipt) -> dict[str, Any]:
    if request.sampling.n != 1:
        raise Unsupported("Cohere's dialect gives one choice", param="n", hint="ask n times")
    if request.suffix:
        raise Unsupported("Cohere's dialect fills in no text before a `suffix`", param="suffix")
    messages = request.messages
    if request.prompt is not None:
        receipt.emulated("prompt", "asked as a message of the user")
        messages = (Message("user", request.prompt),)
    fields: dict[str, Any] = {}
    documents: list[dict[str, Any]] = []
    fields["messages"] = _conversation(messages, documents, receipt)
    _sampling(request.sampling, fields, receipt)
    _tools(request, fields, receipt)
    if documents:
        fields["documents"] = documents
    if request.reasoning is not None:
        _thinking(request.reasoning, fields, receipt)
    for name, value in request.extra.items():
        if name in _PASSED or request.wire is None:
            fields.setdefault(name, value)
        else:
            receipt.dropped(name, "Cohere's dialect has no such parameter")
    _format(request, fields)
    _lost(request, receipt)
    return fields


def _lost(request: Request, receipt: Receipt) -> None:
    if request.echo:
        receipt.dropped("echo", "Cohere's dialect has nothing like it")
    if request.user is not None:
        receipt.dropped("user", "Cohere's dialect names no users")
    if request.service_tier not in (None, "auto", "default"):
        receipt.dropped("service_tier", "Cohere's dialect has a `priority` instead of tiers")


# ---------------------------------------------------------------- the conversation


def _conversation(
    messages: tuple[Message, ...], documents: list[dict[str, Any]], receipt: Receipt
) -> list[dict[str, Any]]:
    """The turns, with one of the system's in front at most: it must be the first there."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        if message.name is not None:
            receipt.dropped(f"{path}.name", "turns have no names")
        if message.role in ("system", "developer"):
            if turns:
                receipt.translated(path, "moved to the system's words at the beginning")
            elif system:
                receipt.translated(path, "joined to the system's words before")
            system.append(_system(message, path, receipt))
            continue
        turns += _turn(message, path, documents, receipt)
    said = "\n\n".join(text for text in system if text)
    if said and not turns:
        receipt.emulated("messages", "the system's words are asked by the user")
        return [{"role": "user", "content": said}]
    return [{"role": "system", "content": said}, *turns] if said else turns


def _system(message: Message, path: str, receipt: Receipt) -> str:
    for k, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
        where = f"{path}.content[{k}]"
        if isinstance(part, TextPart):
            _cached(part, where, receipt)
        else:
            receipt.dropped(where, "the system speaks in text alone")
    return message.text


def _turn(
    message: Message, path: str, documents: list[dict[str, Any]], receipt: Receipt
) -> list[dict[str, Any]]:
    if message.role in ("tool", "function"):
        return [_result(message, path, receipt)]
    if message.role == "assistant":
        return _spoken(message, path, receipt)
    content = message.content
    if not isinstance(content, tuple):
        return [{"role": "user", "content": content or ""}]
    parts = []
    for k, part in enumerate(content):
        found = _part(part, f"{path}.content[{k}]", documents, receipt)
        if found is not None:
            parts.append(found)
    return [{"role": "user", "content": _plain(parts)}] if parts else []


def _plain(parts: list[dict[str, Any]]) -> Any:
    """A lone text as a string, which every model takes."""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _spoken(message: Message, path: str, receipt: Receipt) -> list[dict[str, Any]]:
    """A turn of the model's; what it said before it called tools was its plan."""
    content = message.content
    given = (TextPart(content),) if isinstance(content, str) else content or ()
    thoughts: list[dict[str, Any]] = []
    texts: list[str] = []
    for k, part in enumerate(given):
        where = f"{path}.content[{k}]"
        if isinstance(part, TextPart):
            _cached(part, where, receipt)
            texts.append(part.text)
        elif isinstance(part, RefusalPart):
            receipt.translated(where, "a refusal is said as text")
            texts.append(part.refusal)
        elif isinstance(part, ThinkingPart) and not part.signature:
            thoughts.append({"type": "thinking", "thinking": part.thinking})
        elif isinstance(part, ThinkingPart | RedactedPart):
            receipt.dropped(where, "thoughts of another provider's are not shown")
        else:
            receipt.dropped(where, "a model says nothing but text there")
    text = "".join(texts)
    turn: dict[str, Any] = {"role": "assistant"}
    if message.tool_calls:
        if text:
            turn["tool_plan"] = text
        if thoughts:
            turn["content"] = thoughts
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for call in message.tool_calls
        ]
        return [turn]
    if not (text or thoughts):
        return []
    turn["content"] = [*thoughts, {"type": "text", "text": text}] if thoughts else text
    return [turn]


def _result(message: Message, path: str, receipt: Receipt) -> dict[str, Any]:
    if not message.tool_call_id:
        raise Unsupported(
            "an answer of a function without the id of its call cannot be said in Cohere's dialect",
            param=path,
            hint="use `tools`, `tool_calls` and messages with the role `tool`",
        )
    if message.is_error:
        receipt.dropped(f"{path}.is_error", "a tool's answer has no such mark; its text says so")
    content: Any = message.content or ""
    if isinstance(content, tuple):
        parts = []
        for k, part in enumerate(content):
            where = f"{path}.content[{k}]"
            if isinstance(part, TextPart):
                _cached(part, where, receipt)
                parts.append({"type": "text", "text": part.text})
            else:
                receipt.dropped(where, "a tool answers with text alone there")
        content = _plain(parts) if parts else ""
    return {"role": "tool", "tool_call_id": message.tool_call_id, "content": content}


def _part(
    part: Part, path: str, documents: list[dict[str, Any]], receipt: Receipt
) -> dict[str, Any] | None:
    """One part of what the user says; None for what is empty, said elsewhere or cannot be said."""
    _cached(part, path, receipt)
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text} if part.text else None
    if isinstance(part, ImagePart):
        image = {"url": part.image_url.url}
        if part.image_url.detail is not None:
            image["detail"] = part.image_url.detail
        return {"type": "image_url", "image_url": image}
    if isinstance(part, FilePart):
        return _file(part, path, documents, receipt)
    if isinstance(part, AudioPart):
        raise Unsupported("Cohere's dialect takes no sound", param=path)
    if isinstance(part, RefusalPart):
        receipt.translated(path, "a refusal is said as text")
        return {"type": "text", "text": part.refusal} if part.refusal else None
    if isinstance(part, ThinkingPart | RedactedPart):
        receipt.dropped(path, "thoughts of another provider's are not shown")
        return None
    receipt.dropped(path, f"`{part.kind[:80]}` is known to the dialect it came from only")
    return None


def _file(
    part: FilePart, path: str, documents: list[dict[str, Any]], receipt: Receipt
) -> dict[str, Any] | None:
    """A text: one to cite from goes to the documents, any other into the message."""
    file = part.file
    if file.file_data is None:
        if file.file_id is None and file.file_url is None:
            raise BadRequest("a document without data", param=f"{path}.file")
        raise Unsupported("Cohere's dialect takes documents as text alone", param=f"{path}.file")
    found = data_url(file.file_data, f"{path}.file.file_data")
    if not found.media_type.startswith("text/"):
        raise Unsupported(
            f"Cohere's dialect takes documents as text, not as {found.media_type}",
            param=f"{path}.file.file_data",
            hint="send the text of the document",
        )
    text = found.text(f"{path}.file.file_data")
    if not part.citations:
        receipt.translated(path, "the document's text is part of the message")
        return {"type": "text", "text": text} if text else None
    receipt.translated(path, "one of the `documents` to cite from")
    title = {} if file.filename is None else {"title": file.filename}
    documents.append({"id": str(len(documents)), "data": {**title, "text": text}})
    return None


def _cached(part: Part, path: str, receipt: Receipt) -> None:
    if getattr(part, "cache_control", None) is not None:
        receipt.emulated(f"{path}.cache_control", "prompts are cached unasked")


# ---------------------------------------------------------------- how it is to answer


def _sampling(draw: Sampling, fields: dict[str, Any], receipt: Receipt) -> None:
    for name in ("max_tokens", "temperature"):
        if getattr(draw, name) is not None:
            fields[name] = getattr(draw, name)
    for name, theirs, low, high in _RANGES:
        value = getattr(draw, name)
        if value is not None:
            fields[theirs] = _within(name, value, low, high, receipt)
    for name in _PENALTIES:
        # Zero is the default, and some models refuse to be told both.
        if getattr(draw, name):
            value = _within(name, getattr(draw, name), 0, 1, receipt)
            if value:
                fields[name] = value
    _limits(draw, fields, receipt)


def _limits(draw: Sampling, fields: dict[str, Any], receipt: Receipt) -> None:
    if draw.seed is not None:
        fields["seed"] = draw.seed % _SEEDS
        if fields["seed"] != draw.seed:
            receipt.translated("seed", "a seed is not below zero there")
    if draw.stop:
        fields["stop_sequences"] = draw.stop[:_MOST_STOPS]
        if len(draw.stop) > _MOST_STOPS:
            receipt.dropped("stop", f"sequences beyond {_MOST_STOPS} are refused there")
    if draw.logprobs:
        fields["logprobs"] = True
        if draw.top_logprobs:
            receipt.dropped("top_logprobs", "only the chosen tokens have probabilities there")


def _within(name: str, value: float, low: float, high: float, receipt: Receipt) -> float:
    kept = max(low, min(value, high)) if isfinite(value) else high
    if kept != value:
        receipt.translated(name, f"{kept} is the nearest there is")
    return kept


def _tools(request: Request, fields: dict[str, Any], receipt: Receipt) -> None:
    tools = own_tools(request, receipt)
    if not tools:
        return
    choice = request.tool_choice
    if choice is not None and choice.startswith("function:"):
        name = choice.removeprefix("function:")
        named = [tool for tool in tools if tool.name == name]
        if not named:
            raise BadRequest(
                f"`tool_choice` names {name!r}, which is not among `tools`", param="tool_choice"
            )
        if len(tools) > 1:
            receipt.emulated("tool_choice", "the other tools are not shown")
        tools, choice = named, "required"
    fields["tools"] = [_tool(tool) for tool in tools]
    if choice in ("required", "none"):
        fields["tool_choice"] = choice.upper()
    strict = [tool.strict is True for tool in tools]
    if any(strict):
        fields["strict_tools"] = True
        if not all(strict):
            receipt.translated("strict_tools", "all tools are held to their schemas, or none")
    if request.parallel_tool_calls is False:
        receipt.dropped("parallel_tool_calls", "the model may call several tools at once")


def _tool(tool: Tool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        told["description"] = tool.description
    told["parameters"] = tool.parameters or _ANYTHING
    return {"type": "function", "function": told}


def _format(request: Request, fields: dict[str, Any]) -> None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return
    for name in ("tools", "documents"):
        if name in fields and fields.get("tool_choice") != "NONE":
            raise Unsupported(
                f"Cohere's dialect takes no `response_format` together with `{name}`",
                param="response_format",
                hint="ask without one of them, or another model",
            )
    told: dict[str, Any] = {"type": "json_object"}
    if wanted.schema is not None:
        told["json_schema"] = wanted.schema
    if fields.get("tool_choice") == "NONE":
        for name in ("tools", "tool_choice", "strict_tools"):
            fields.pop(name, None)  # nothing may be called, so nothing is missed
    fields["response_format"] = told


def _thinking(wanted: Reasoning, fields: dict[str, Any], receipt: Receipt) -> None:
    if wanted.effort == "none" or wanted.budget == 0:
        fields["thinking"] = {"type": "disabled"}
        return
    told: dict[str, Any] = {"type": "enabled"}
    budget = wanted.budget
    if budget is None and wanted.effort not in (None, "high"):
        budget = _BUDGETS.get(wanted.effort or "")
        limit = "without a limit" if budget is None else f"up to {budget} tokens of thought"
        receipt.translated("reasoning_effort", limit)
    if budget is not None:
        told["token_budget"] = budget
    # Who does not want to see thoughts is not shown them (`surfaces`); there they always come.
    fields["thinking"] = told


# ---------------------------------------------------------------- embeddings


def build_embed(request: EmbedRequest, model: str) -> WireRequest:
    """A request for vectors. A text that is too long is refused, not cut.

    Raises:
        Unsupported: tokens instead of text.
    """
    for i, text in enumerate(request.inputs):
        if not isinstance(text, str):
            raise Unsupported("Cohere's dialect embeds texts, not tokens", param=f"input[{i}]")
    fields: dict[str, Any] = {
        "model": model,
        "texts": request.inputs,
        "input_type": _TASKS.get(request.task or "", _DOCUMENT),
        "embedding_types": ("float",),
        "truncate": "NONE",
    }
    if request.dimensions is not None:
        fields["output_dimension"] = request.dimensions
    return WireRequest("/embed", _encode(fields), "cohere_embed")


def embed_marks(request: EmbedRequest) -> dict[str, Mark]:
    """What became of the parameters of a request for vectors."""
    marks = {}
    known = _TASKS.get(request.task or "")
    if known is None:
        marks["taskType"] = Mark("emulated", f"it must be told there: `{_DOCUMENT}`")
    elif request.task not in ("RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT", known.upper()):
        marks["taskType"] = Mark("translated", f"`{known}` is the nearest there is")
    if request.user is not None:
        marks["user"] = Mark("dropped", "Cohere's dialect names no users")
    return marks
