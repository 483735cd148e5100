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
    `repetition_penalty`       ignored; its own is `repeat_penalty`    told by that name
    `lora` left out            cached keys and values of whatever      every scale is told, always
                               adapters the slot had last              (`lora.py`)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.models.info import LocalModel, ModelInfo
from llm_runner_router.types import Request, ResponseFormat, Tool

from . import fit, lora
from .adapting import check, plain, sampled, spliced
from .base import RUNNERS, Adapted, Feature, Purpose, Verdict, foreign_type
from .devices import Machine
from .fit import UBATCH, Placement, Wanted
from .references import moved
from .threads import CpuPlan

NAME = "llamacpp"
EXTRA: str | None = None
NEEDS: tuple[str, ...] = ("xllamacpp",)
RUNNER = f"{RUNNERS}.llamacpp"
FEATURES: frozenset[Feature] = frozenset(
    (
        "stop",
        "seed",
        "penalties",
        "logprobs",
        "json_schema",
        "grammar",
        "tools",
        "embed",
        "rerank",
        "lora",
        "prompt_cache",
        "batch",
    )
)
POOLINGS = {"mean": "MEAN", "cls": "CLS", "last": "LAST"}
"""The engine's names for ways to make one vector of many. A model that says none, as most that
write do, gives the mean."""
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space as Python's `json.dumps` writes it, which is what most training data has."""
CALL_TAG = "<tool_call>"
"""Templates of the Hermes and Qwen family write calls between this tag and its closing one."""

_encode = msgspec.json.Encoder().encode


def can_run(info: ModelInfo, machine: Machine) -> Verdict:
    """GGUF files, and only those."""
    if info.format != "gguf":
        return Verdict(NAME, 0.0, f"reads GGUF, not {info.format}")
    if foreign := foreign_type(info):
        return Verdict(NAME, 0.0, f"does not know weights of the type {foreign}")
    return Verdict(NAME, 1.0, "reads GGUF as it is")


def place(info: ModelInfo, wanted: Wanted) -> Placement:
    """See `fit.place`, whose numbers are this engine's."""
    return fit.place(info, wanted)


def order(
    model: LocalModel, plan: CpuPlan, placement: Placement, api_key: str, purpose: Purpose
) -> dict[str, Any]:
    """The parameters, by dotted name; `runners/llamacpp.py` sets them."""
    return {"params": parameters(model, plan, placement, api_key, purpose)}


def saving(order: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`order`, with a folder that the runner may save its slots to (`slots.py`)."""
    return order | {"params": order["params"] | {"slot_save_path": f"{folder}{os.sep}"}}


def guessing(order: dict[str, Any]) -> dict[str, Any]:
    """`order`, with guesses ahead from the text's own n-grams.

    Of the kinds that need no second model, `NGRAM_MAP_K` was right most often in b11549.
    `NGRAM_SIMPLE` seldom guessed, and `NGRAM_MOD` keeps its table between requests, so that an
    answer depended on those before it.
    """
    kinds = {"enums": ["common_speculative_type", ["COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K"]]}
    return order | {"params": order["params"] | {"speculative.types": kinds}}


def drafting(order: dict[str, Any], draft: LocalModel) -> dict[str, Any]:
    """`order`, with guesses ahead by `draft`, on as many threads as the model has."""
    params = order["params"]
    kinds = {"enums": ["common_speculative_type", ["COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE"]]}
    more = {
        "speculative.types": kinds,
        "speculative.draft.mparams.path": str(draft.path),
        "speculative.draft.cpuparams.n_threads": params["cpuparams.n_threads"],
        "speculative.draft.cpuparams_batch.n_threads": params["cpuparams_batch.n_threads"],
    }
    return order | {"params": params | more}


def parameters(
    model: LocalModel, plan: CpuPlan, placement: Placement, api_key: str, purpose: Purpose
) -> dict[str, Any]:
    """The engine's parameters for one runner, by dotted name."""
    wanted: dict[str, Any] = {
        "model.path": str(model.path),
        "model_alias": {"set": [model.title]},
        "n_ctx": placement.context * placement.slots,
        "n_parallel": placement.slots,
        # Whoever leaves while the prompt is read is noticed between two batches.
        "n_batch": min(UBATCH, placement.context),
        "n_ubatch": min(UBATCH, placement.context),
        "ctx_shift": False,
        # A checkpoint of a sliding window is kept one token too long (`pos_max > pos_next` in
        # server-context.cpp) and then gives wrong probabilities: off by 5.5 on a tiny Gemma 3.
        # With adapters, it might be one that was made with others.
        **({"n_ctx_checkpoints": 0} if model.info.window or model.adapters else {}),
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
    if model.template is not None:
        wanted["chat_template"] = model.template
    if not placement.mapped:
        wanted["load_mode"] = {"enum": ["llama_load_mode", "LLAMA_LOAD_MODE_NONE"]}
    if placement.kv_type != "f16":
        kind = {"enum": ["ggml_type", f"GGML_TYPE_{placement.kv_type.upper()}"]}
        wanted |= {"cache_type_k": kind, "cache_type_v": kind}
    if purpose != "chat":
        pooling = "RANK" if purpose == "rerank" else POOLINGS.get(model.info.pooling, "MEAN")
        wanted |= {
            "embedding": True,
            "pooling_type": {"enum": ["llama_pooling_type", f"LLAMA_POOLING_TYPE_{pooling}"]},
            # An input is computed in one piece, which `n_batch` bounds; there is room for as many
            # as there are slots, so that what the engine still holds of the last ones is in
            # nobody's way. Encoders hold nothing.
            "n_ctx": placement.context * (1 if model.info.encoder else placement.slots),
            "kv_unified": True,
            "n_batch": placement.context,
            "n_ubatch": placement.context,
        }
    elif model.adapters:
        # With a scale of 0: whatever a request may fail to say, it is the model itself.
        loras = [[str(adapter.path), 0.0] for adapter in model.adapters]
        wanted["lora_adapters"] = {"objects": ["CommonAdapterLoraInfo", loras]}
    return wanted


def adapt(request: Request, model: LocalModel) -> Adapted:
    """`request` for one choice, as this engine wants it.

    Raises:
        BadRequest: something in it that no engine could use, with its path.
        Unsupported: something this engine cannot do.
    """
    if model.info.task != "generate":  # an encoder would end its process at the first text
        raise Unsupported(
            f"`{model.name}` does not write text: its file says that it is for"
            + (" scores" if model.info.task == "rerank" else " vectors"),
            param="model",
            hint="ask it for " + ("a ranking" if model.info.task == "rerank" else "embeddings"),
        )
    check(request, model)
    request = lora.told(plain(request), model)
    penalty = request.extra.get("repetition_penalty")
    if penalty is not None and "repeat_penalty" not in request.extra:
        request = spliced(request, {"repeat_penalty": penalty})
    sampling = request.sampling
    bare = sampling.logprobs and not sampling.top_logprobs
    if bare:
        name = "top_logprobs" if request.prompt is None else "logprobs"
        request = sampled(request, {name: Raw(b"1")}, top_logprobs=1)
    adapted = Adapted(request)
    wanted = request.response_format
    if request.tools and _forced(request):
        adapted = _force_call(request, model)
    elif wanted is not None and wanted.type != "text" and not request.tools:
        adapted = _force_json(request, wanted)
    return msgspec.structs.replace(adapted, bare_logprobs=bare)


# ---------------------------------------------------------------- JSON


def _force_json(request: Request, wanted: ResponseFormat) -> Adapted:
    schema: dict[str, Any] = {"type": "object"}
    if wanted.type == "json_schema" and wanted.schema is not None:
        schema = _decoded(wanted.schema, "response_format.json_schema.schema")
    grammar = "%llguidance {}\nstart: %json " + _text(schema | {"x-guidance": SPACING})
    request = msgspec.structs.replace(request, response_format=None)
    request = spliced(request, {"grammar": Raw(_encode(grammar))}, ("response_format",))
    starts = "{" if schema.get("type") == "object" else ""
    return Adapted(request, starts=starts)


def _decoded(raw: Raw, path: str) -> dict[str, Any]:
    value = msgspec.json.decode(raw)
    if not isinstance(value, dict):
        raise BadRequest(f"`{path}` is an object here", param=path)
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
        given = request.extra.get("chat_template_kwargs")
        more = {} if given is None else _decoded(given, "chat_template_kwargs")
        put = {"grammar": grammar, "chat_template_kwargs": {**more, "tools": tools}}
        fields = {key: Raw(_encode(value)) for key, value in put.items()}
        return Adapted(spliced(bare, fields, drop), calls=True, starts="<")
    wanted = ResponseFormat("json_schema", Raw(_encode(schema)), "call")
    form = {"type": "json_schema", "json_schema": {"name": "call", "schema": schema}}
    request = msgspec.structs.replace(request, tool_choice="none", response_format=wanted)
    if request.wire is not None:
        fields = {"tool_choice": Raw(b'"none"'), "response_format": Raw(_encode(form))}
        request = spliced(request, fields)
    return Adapted(request, calls=True, starts="{")


def _call_schema(tool: Tool, place: str) -> dict[str, Any]:
    """The schema of a whole call; references inside the parameters follow them to `place`."""
    arguments: Any = {"type": "object"}
    if tool.parameters is not None:
        arguments = _decoded(tool.parameters, f"tools.{tool.name}.parameters") or arguments
        arguments = moved(arguments, f"{place}/properties/arguments")
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _function(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description or ""}
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    return function
