"""What every engine does with a request before it is sent to a runner. Pure.

Knows: the values of `types.py`. Does not know: any engine. An engine with our own endpoint
(`runners/http.py`) needs no more than `adapt`; others change the result further.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.fidelity import Receipt, own_tools
from llm_runner_router.models.info import LocalModel
from llm_runner_router.types import (
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    Part,
    Request,
    RequestWire,
    Sampling,
)

from .base import Adapted

SPOKEN = ("openai_chat", "openai_completions")
"""What a client may have spoken for its own words to be sent to a runner."""
OLLAMA = "ollama"
SAMPLERS = frozenset(
    "min_p typical_p repeat_penalty repeat_last_n mirostat mirostat_tau mirostat_eta".split()
)
"""Options of Ollama's clients that runners know under the same name: both come from llama.cpp."""
NOWHERE: dict[str, Any] = {
    "audio": None,
    "function_call": None,
    "functions": None,
    "metadata": {},
    "modalities": ["text"],
    "moderation": None,
    "prediction": None,
    "safety_identifier": None,
    "store": False,
    "verbosity": None,
    "web_search_options": None,
}
"""Parameters of OpenAI's reference that no runner has, with the value that asks for nothing."""
_MEDIA: dict[type[Part], str] = {
    ImagePart: "images",
    AudioPart: "sound",
    FilePart: "documents",
}
MAX_STOPS = 64
"""Stop sequences of one request."""
MAX_STOP = 1024
"""Characters of one of them."""


def adapt(request: Request, model: LocalModel) -> Adapted:
    """`request` checked, streamed, for one choice, with usage.

    Raises:
        BadRequest: something in it that no engine could use, with its path.
        Unsupported: something no local engine does.
    """
    check(request, model)
    return Adapted(plain(request))


def native(request: Request, model: LocalModel, receipt: Receipt) -> Request:
    """`request` in the dialect of runners; what they cannot bring along is noted."""
    if request.wire is not None and request.wire.dialect not in SPOKEN:
        shared = SAMPLERS if request.wire.dialect == OLLAMA else frozenset[str]()
        for name in request.extra:
            if name not in shared:
                receipt.dropped(name, "local models have no such parameter")
        kept = {name: value for name, value in request.extra.items() if name in shared}
        tools = tuple(own_tools(request, receipt))
        request = msgspec.structs.replace(request, wire=None, extra=kept, tools=tools)
    for name, value in request.extra.items():
        if name in NOWHERE and msgspec.json.decode(value) not in (None, NOWHERE[name]):
            receipt.dropped(name, "local models have no such parameter")
    if request.service_tier is not None:
        receipt.dropped("service_tier", "a local model has one queue")
        request = msgspec.structs.replace(request, service_tier=None)
    return request if request.reasoning is None else _thinking(request, model, receipt)


def _thinking(request: Request, model: LocalModel, receipt: Receipt) -> Request:
    """With the switches for thinking that the model's chat template has."""
    wanted, template = request.reasoning, model.info.chat_template or ""
    assert wanted is not None
    thinks = wanted.effort != "none" and wanted.budget != 0
    switches: dict[str, Any] = {}
    if "reasoning_effort" in template and wanted.effort is not None:
        switches["reasoning_effort"] = wanted.effort
    elif "enable_thinking" in template:
        switches["enable_thinking"] = thinks
        receipt.translated("reasoning", "the model thinks or not, without a measure")
    elif thinks:
        receipt.dropped("reasoning", "the model's chat template has no switch for it")
    request = msgspec.structs.replace(request, reasoning=None)
    if not switches:
        return request
    given = request.extra.get("chat_template_kwargs")
    own = (msgspec.json.decode(given) or {}) if given is not None else {}
    if not isinstance(own, dict):
        raise BadRequest("`chat_template_kwargs` is an object here", param="chat_template_kwargs")
    put = {"chat_template_kwargs": Raw(msgspec.json.encode({**switches, **own}))}
    # Engines that write the field anew read it from the extras.
    return spliced(msgspec.structs.replace(request, extra={**request.extra, **put}), put)


def check(request: Request, model: LocalModel) -> None:
    """Refuse what no local engine takes.

    Raises:
        BadRequest: something in it that no engine could use, with its path.
        Unsupported: something no local engine does.
    """
    if request.suffix:
        raise Unsupported(f"`{model.name}` cannot fill in text before a `suffix`", param="suffix")
    best_of = _int(request, "best_of")
    if best_of is not None and best_of > request.sampling.n:
        raise Unsupported(
            f"`{model.name}` gives every choice it makes, it does not pick the best of more",
            param="best_of",
            hint="ask for as many with `n`, and choose",
        )
    if request.echo and request.sampling.logprobs:
        raise Unsupported(
            f"`{model.name}` tells no probabilities of the prompt's tokens, which `echo` asks for",
            param="echo",
            hint="leave out `echo` or `logprobs`",
        )
    check_stops(request.sampling.stop)
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


def check_stops(stops: tuple[str, ...]) -> None:
    """Refuse more, or longer ones, than anybody needs: each costs time for every character.

    Raises:
        BadRequest: with the path of the one at fault.
    """
    if len(stops) > MAX_STOPS:
        raise BadRequest(f"`stop` has {len(stops)} sequences; at most {MAX_STOPS}", param="stop")
    for i, stop in enumerate(stops):
        if len(stop) > MAX_STOP:
            raise BadRequest(
                f"a stop sequence has at most {MAX_STOP} characters, this one has {len(stop)}",
                param=f"stop[{i}]",
            )


def _int(request: Request, name: str) -> int | None:
    raw = request.extra.get(name)
    found = None if raw is None else msgspec.json.decode(raw)
    return found if isinstance(found, int) else None


def _check_message(message: Message, path: str, model: LocalModel) -> None:
    if isinstance(message.content, tuple):
        for k, part in enumerate(message.content):
            kind = _MEDIA.get(type(part))
            if kind is not None:
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


def plain(request: Request) -> Request:
    """Streamed, one choice, with usage; the client's own fields stay where they are equal."""
    changed = request.sampling.n != 1 or request.echo
    request = msgspec.structs.replace(request, stream=True, include_usage=True, echo=False)
    return sampled(request, {}, n=1) if changed else request


def sampled(request: Request, fields: dict[str, Raw], **changes: Any) -> Request:
    """With other sampling, and the client's bytes with other `fields`."""
    sampling: Sampling = msgspec.structs.replace(request.sampling, **changes)
    request = msgspec.structs.replace(request, sampling=sampling)
    if request.wire is None:
        return request
    return spliced(request, fields, ("n", "best_of", "echo"))


def spliced(request: Request, put: dict[str, Raw], drop: tuple[str, ...] = ()) -> Request:
    """`put` replaces and `drop` removes fields, in the client's bytes or in the extras."""
    wire = request.wire
    if wire is None:
        extra = {k: v for k, v in request.extra.items() if k not in drop} | put
        return msgspec.structs.replace(request, extra=extra)
    fields = {k: v for k, v in wire.fields.items() if k not in drop} | put
    wire = RequestWire(dialect=wire.dialect, fields=fields)
    return msgspec.structs.replace(request, wire=wire)
