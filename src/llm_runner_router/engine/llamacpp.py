"""What this engine needs told, and how its answers differ from OpenAI's. Pure.

Knows: parameters of llama.cpp's server as xllamacpp 2026.10.11549 has them, and what that build
does with requests (each row was tried on it):

    request                    the engine                              here
    `stream: false`            goes on after the client left           always streamed
    `n`                        counts one choice's tokens only,        one request per choice
                               refuses more than it has slots          (`fanout.py`)
    `logprobs` without `top_…` gives twenty alternatives per token,    one is asked for and left
                               and with `top_logprobs: 0` nothing      out (`local.py`)
    `response_format` schema   any white space: weak models write      a grammar of the schema with
                               blanks until the limit                  fixed separators
    `tool_choice` required,    leaves the choice to the model          a grammar of the calls, read
    or one function                                                    back by `calls.py`
    images, sound              status 500                              Unsupported
    arguments that are no JSON status 500                              BadRequest with the path
    a prompt that is too long  `exceed_context_size_error`             ContextTooLong
    `echo`, `suffix`           ignored                                 echoed; Unsupported
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.models.info import LocalModel
from llm_runner_router.types import (
    AudioPart,
    ImagePart,
    Message,
    Request,
    RequestWire,
    ResponseFormat,
    Sampling,
    Tool,
)

from .fit import UBATCH, Placement
from .threads import CpuPlan

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space as Python's `json.dumps` writes it, which is what most training data has."""
CALL_TAG = "<tool_call>"
"""Templates of the Hermes and Qwen family write calls between this tag and its closing one."""

_encode = msgspec.json.Encoder().encode


class Adapted(Struct, frozen=True):
    """A request as this engine wants it, and how to read the answer."""

    request: Request
    calls: bool = False
    """The text of the answer is one forced tool call."""
    bare_logprobs: bool = False
    """Alternatives to the tokens were not asked for."""
    starts: str = ""
    """Characters the answer may start with, white space aside; empty is any. A grammar that the
    engine could not compile is silently ignored by it, which shows here."""


def parameters(
    model: LocalModel, plan: CpuPlan, placement: Placement, api_key: str, *, embed: bool
) -> dict[str, Any]:
    """The engine's parameters for one runner, by dotted name."""
    wanted: dict[str, Any] = {
        "model.path": str(model.path),
        "model_alias": {"set": [model.name]},
        "n_ctx": placement.context * placement.slots,
        "n_parallel": placement.slots,
        # Whoever leaves while the prompt is read is noticed between two batches.
        "n_batch": min(UBATCH, placement.context),
        "n_ubatch": min(UBATCH, placement.context),
        "ctx_shift": False,
        "fit_params": False,  # `fit.py` decided; the engine's own try costs a second allocation
        "cache_ram_mib": placement.prompt_cache >> 20,
        "cpuparams.n_threads": plan.threads,
        "cpuparams_batch.n_threads": plan.batch_threads,
        # A kept connection holds one of these until the engine closes it, idle or not.
        "n_threads_http": 4 * placement.slots + 8,
        "hostnames": ["127.0.0.1"],
        "port": 0,
        "api_keys": [api_key],
        "cors_origins": "null",
        "ui": False,
        "endpoint_metrics": True,
        "endpoint_slots": True,
        "offline": True,
        "sse_ping_interval": -1,
    }
    if embed:
        wanted |= {
            "embedding": True,
            "pooling_type": {"enum": ["llama_pooling_type", "LLAMA_POOLING_TYPE_MEAN"]},
            # An input is computed in one piece. With one cache for all slots, each may be as long
            # as the context.
            "n_ctx": placement.context,
            "kv_unified": True,
            "n_batch": placement.context,
            "n_ubatch": placement.context,
        }
    return wanted


def adapt(request: Request, model: LocalModel) -> Adapted:
    """`request` for one choice, as this engine wants it.

    Raises:
        BadRequest: something in it that no engine could use, with its path.
        Unsupported: something this engine cannot do.
    """
    _check(request, model)
    request = _plain(request)
    sampling = request.sampling
    bare = sampling.logprobs and not sampling.top_logprobs
    if bare:
        name = "top_logprobs" if request.prompt is None else "logprobs"
        request = _sampled(request, {name: Raw(b"1")}, top_logprobs=1)
    adapted = Adapted(request)
    wanted = request.response_format
    if request.tools and _forced(request):
        adapted = _force_call(request, model)
    elif wanted is not None and wanted.type != "text" and not request.tools:
        adapted = _force_json(request, wanted)
    return msgspec.structs.replace(adapted, bare_logprobs=bare)


def _check(request: Request, model: LocalModel) -> None:
    if request.suffix:
        raise Unsupported(f"`{model.name}` cannot fill in text before a `suffix`", param="suffix")
    for i, message in enumerate(request.messages):
        _check_message(message, f"messages[{i}]", model)
    if request.tool_choice and request.tool_choice.startswith("function:"):
        name = request.tool_choice.removeprefix("function:")
        if all(tool.name != name for tool in request.tools):
            raise BadRequest(
                f"`tool_choice` names {name!r}, which is not among `tools`", param="tool_choice"
            )
    if request.tool_choice == "required" and not request.tools:
        raise BadRequest("`tool_choice` is `required`, but there are no `tools`", param="tools")


def _check_message(message: Message, path: str, model: LocalModel) -> None:
    if isinstance(message.content, tuple):
        for k, part in enumerate(message.content):
            if isinstance(part, ImagePart | AudioPart):
                kind = "images" if isinstance(part, ImagePart) else "sound"
                raise Unsupported(
                    f"`{model.name}` does not take {kind}",
                    param=f"{path}.content[{k}]",
                    hint="ask a model that does, see `llmrr ls`",
                )
    for k, call in enumerate(message.tool_calls):
        try:
            msgspec.json.decode(call.arguments or "{}")
        except msgspec.DecodeError as exc:
            raise BadRequest(
                f"the arguments of {call.name!r} are not JSON: {exc}",
                param=f"{path}.tool_calls[{k}].function.arguments",
            ) from exc


def _plain(request: Request) -> Request:
    """Streamed, one choice, with usage; the client's own fields stay where they are equal."""
    changed = request.sampling.n != 1 or request.echo
    request = msgspec.structs.replace(request, stream=True, include_usage=True, echo=False)
    return _sampled(request, {}, n=1) if changed else request


def _sampled(request: Request, fields: dict[str, Raw], **changes: Any) -> Request:
    """With other sampling, and the client's bytes with other `fields`."""
    sampling: Sampling = msgspec.structs.replace(request.sampling, **changes)
    request = msgspec.structs.replace(request, sampling=sampling)
    if request.wire is None:
        return request
    return _spliced(request, fields, ("n", "best_of", "echo"))


def _spliced(request: Request, put: dict[str, Raw], drop: tuple[str, ...] = ()) -> Request:
    """`put` replaces and `drop` removes fields, in the client's bytes or in the extras."""
    wire = request.wire
    if wire is None:
        extra = {k: v for k, v in request.extra.items() if k not in drop} | put
        return msgspec.structs.replace(request, extra=extra)
    fields = {k: v for k, v in wire.fields.items() if k not in drop} | put
    wire = RequestWire(dialect=wire.dialect, fields=fields)
    return msgspec.structs.replace(request, wire=wire)


# ---------------------------------------------------------------- JSON


def _force_json(request: Request, wanted: ResponseFormat) -> Adapted:
    schema: dict[str, Any] = {"type": "object"}
    if wanted.type == "json_schema" and wanted.schema is not None:
        schema = _decoded(wanted.schema, "response_format.json_schema.schema")
    grammar = "%llguidance {}\nstart: %json " + _text(schema | {"x-guidance": SPACING})
    request = msgspec.structs.replace(request, response_format=None)
    request = _spliced(request, {"grammar": Raw(_encode(grammar))}, ("response_format",))
    starts = "{" if schema.get("type") == "object" else ""
    return Adapted(request, starts=starts)


def _decoded(raw: Raw, path: str) -> dict[str, Any]:
    value = msgspec.json.decode(raw)
    if not isinstance(value, dict):
        raise BadRequest("a JSON Schema is an object here", param=path)
    return value


def _text(value: object) -> str:
    return _encode(value).decode()


# ---------------------------------------------------------------- calls


def _forced(request: Request) -> bool:
    choice = request.tool_choice
    return choice is not None and (choice == "required" or choice.startswith("function:"))


def _force_call(request: Request, model: LocalModel) -> Adapted:
    """Hold the answer to one call of an allowed function.

    The engine takes no grammar beside `tools`, so the tools go to the template by another door
    (`chat_template_kwargs`) if it knows the tag; otherwise the engine's own description of tools
    is used, with the call as a JSON answer.
    """
    assert request.tool_choice is not None
    name = request.tool_choice.removeprefix("function:")
    allowed = [t for t in request.tools if request.tool_choice == "required" or t.name == name]
    calls = [_call_schema(tool, f"#/anyOf/{i}") for i, tool in enumerate(allowed)]
    schema = {"anyOf": calls, "x-guidance": SPACING}
    drop = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
    bare = msgspec.structs.replace(
        request, tools=(), tool_choice=None, parallel_tool_calls=None, response_format=None
    )
    if CALL_TAG in (model.info.chat_template or ""):
        grammar = (
            f'%llguidance {{}}\nstart: "{CALL_TAG}\\n" call "\\n</tool_call>"\n'
            f"call: %json {_text(schema)}"
        )
        tools = [{"type": "function", "function": _function(t)} for t in request.tools]
        put = {"grammar": grammar, "chat_template_kwargs": {"tools": tools}}
        fields = {key: Raw(_encode(value)) for key, value in put.items()}
        return Adapted(_spliced(bare, fields, drop), calls=True, starts="<")
    wanted = ResponseFormat("json_schema", Raw(_encode(schema)), "call")
    form = {"type": "json_schema", "json_schema": {"name": "call", "schema": schema}}
    request = msgspec.structs.replace(request, tool_choice="none", response_format=wanted)
    if request.wire is not None:
        fields = {"tool_choice": Raw(b'"none"'), "response_format": Raw(_encode(form))}
        request = _spliced(request, fields)
    return Adapted(request, calls=True, starts="{")


def _call_schema(tool: Tool, place: str) -> dict[str, Any]:
    """The schema of a whole call; references inside the parameters follow them to `place`."""
    arguments: Any = {"type": "object"}
    if tool.parameters is not None:
        arguments = _decoded(tool.parameters, f"tools.{tool.name}.parameters") or arguments
        arguments = _moved(arguments, f"{place}/properties/arguments")
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    ref = moved.get("$ref")
    if isinstance(ref, str) and ref.startswith("#"):
        moved["$ref"] = place + ref[1:]
    return moved


def _function(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description or ""}
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    return function
