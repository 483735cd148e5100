"""What this engine is told, for each kind of request. Pure; the engine itself is asked in
`test_answers.py`."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from llm_runner_router.engine import fit, llamacpp
from llm_runner_router.engine.base import Adapted, Purpose
from llm_runner_router.engine.threads import CpuPlan
from llm_runner_router.errors import BadRequest, RunnerError, Unsupported
from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse
from llm_runner_router.types import (
    ImagePart,
    ImageURL,
    Message,
    Request,
    RequestWire,
    ResponseFormat,
    Sampling,
    Tool,
    ToolCall,
)

USER = (Message("user", "hello"),)
SCHEMA = Raw(b'{"type":"object","properties":{"a":{"$ref":"#/$defs/n"}},"$defs":{"n":{}}}')
TOOLS = (Tool("add", "adds", SCHEMA), Tool("look"))


@pytest.fixture
def model() -> LocalModel:
    return resolve(parse("zoo:tiny-general"))


def no_template(model: LocalModel) -> LocalModel:
    info = msgspec.structs.replace(model.info, chat_template="{{ messages }}")
    return msgspec.structs.replace(model, info=info)


def grammar_of(adapted: Adapted) -> dict[str, Any]:
    text = msgspec.json.decode(adapted.request.extra["grammar"], type=str)
    assert text.startswith("%llguidance {}\n")
    found: dict[str, Any] = msgspec.json.decode(text[text.index("%json ") + 6 :])
    return found


def test_every_request_is_streamed_with_usage(model: LocalModel) -> None:
    found = llamacpp.adapt(Request(model="m", messages=USER), model).request
    assert found.stream
    assert found.include_usage


def test_the_clients_bytes_stay_when_nothing_changes(model: LocalModel) -> None:
    wire = RequestWire("openai_chat", {"model": Raw(b'"m"'), "novel": Raw(b"1")})
    found = llamacpp.adapt(Request(model="m", messages=USER, wire=wire), model)
    assert found.request.wire is wire


def test_one_choice_and_no_echo_in_the_clients_bytes_too(model: LocalModel) -> None:
    wire = RequestWire("openai_completions", {"n": Raw(b"2"), "echo": Raw(b"true")})
    request = Request(model="m", prompt="p", echo=True, sampling=Sampling(n=2), wire=wire)
    found = llamacpp.adapt(request, model).request
    assert (found.sampling.n, found.echo) == (1, False)
    assert found.wire is not None
    assert found.wire.fields == {}


@pytest.mark.parametrize("spliced", [True, False])
def test_logprobs_alone_ask_for_one_alternative_to_leave_out(
    model: LocalModel, spliced: bool
) -> None:
    wire = RequestWire("openai_chat", {"logprobs": Raw(b"true")}) if spliced else None
    request = Request(model="m", messages=USER, sampling=Sampling(logprobs=True), wire=wire)
    adapted = llamacpp.adapt(request, model)
    found = adapted.request
    assert adapted.bare_logprobs
    assert found.sampling.top_logprobs == 1
    if spliced:
        assert found.wire is not None
        assert found.wire.fields["top_logprobs"] == Raw(b"1")


@pytest.mark.parametrize("spliced", [True, False])
def test_a_schema_becomes_a_grammar_with_fixed_white_space(
    model: LocalModel, spliced: bool
) -> None:
    wire = RequestWire("openai_chat", {"response_format": Raw(b"{}")}) if spliced else None
    wanted = ResponseFormat("json_schema", SCHEMA, "x")
    request = Request(model="m", messages=USER, response_format=wanted, wire=wire)
    adapted = llamacpp.adapt(request, model)
    found = adapted.request
    assert found.response_format is None
    assert adapted.starts == "{"
    if spliced:
        assert found.wire is not None
        assert list(found.wire.fields) == ["grammar"]
    else:
        assert grammar_of(adapted)["x-guidance"]["whitespace_flexible"] is False
        assert grammar_of(adapted)["$defs"] == {"n": {}}


def test_any_json_object(model: LocalModel) -> None:
    request = Request(model="m", messages=USER, response_format=ResponseFormat("json_object"))
    assert grammar_of(llamacpp.adapt(request, model))["type"] == "object"


@pytest.mark.parametrize(
    ("choice", "names"), [("required", ["add", "look"]), ("function:look", ["look"])]
)
def test_a_forced_call_by_grammar(model: LocalModel, choice: str, names: list[str]) -> None:
    request = Request(model="m", messages=USER, tools=TOOLS, tool_choice=choice)
    adapted = llamacpp.adapt(request, model)
    assert adapted.calls
    assert adapted.request.tools == ()
    calls = grammar_of(adapted)["anyOf"]
    assert [call["properties"]["name"]["const"] for call in calls] == names
    kwargs = msgspec.json.decode(adapted.request.extra["chat_template_kwargs"])
    assert [tool["function"]["name"] for tool in kwargs["tools"]] == ["add", "look"]
    if choice == "required":
        inside = calls[0]["properties"]["arguments"]["properties"]["a"]
        assert inside == {"$ref": "#/anyOf/0/properties/arguments/$defs/n"}


@pytest.mark.parametrize("spliced", [True, False])
def test_a_forced_call_where_the_template_knows_no_tag(model: LocalModel, spliced: bool) -> None:
    wire = RequestWire("openai_chat", {"tool_choice": Raw(b'"required"')}) if spliced else None
    request = Request(model="m", messages=USER, tools=TOOLS, tool_choice="required", wire=wire)
    adapted = llamacpp.adapt(request, no_template(model))
    assert adapted.calls
    assert adapted.request.tools == TOOLS
    assert adapted.request.tool_choice == "none"
    if spliced:
        assert adapted.request.wire is not None
        assert adapted.request.wire.fields["tool_choice"] == Raw(b'"none"')
        assert b"anyOf" in bytes(adapted.request.wire.fields["response_format"])


BAD: dict[str, tuple[Request, type[RunnerError], str]] = {
    "suffix": (Request(model="m", prompt="p", suffix="s"), Unsupported, "suffix"),
    "image": (
        Request(
            model="m",
            messages=(*USER, Message("user", (ImagePart(ImageURL("data:image/png;base64,AA")),))),
        ),
        Unsupported,
        "messages[1].content[0]",
    ),
    "arguments": (
        Request(
            model="m",
            messages=(*USER, Message("assistant", tool_calls=(ToolCall("1", "add", "{no"),))),
        ),
        BadRequest,
        "messages[1].tool_calls[0].function.arguments",
    ),
    "unknown function": (
        Request(model="m", messages=USER, tools=TOOLS, tool_choice="function:nope"),
        BadRequest,
        "tool_choice",
    ),
    "no tools": (Request(model="m", messages=USER, tool_choice="required"), BadRequest, "tools"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_it_cannot_do_is_said_with_the_path(model: LocalModel, name: str) -> None:
    request, kind, param = BAD[name]
    with pytest.raises(kind) as caught:
        llamacpp.adapt(request, model)
    assert caught.value.param == param


@pytest.mark.parametrize(("task", "gives"), [("embed", "vectors"), ("rerank", "scores")])
def test_who_writes_no_text_is_not_asked_for_it(model: LocalModel, task: str, gives: str) -> None:
    info = msgspec.structs.replace(model.info, task=task)
    with pytest.raises(Unsupported, match=f"does not write text: .*{gives}") as caught:
        llamacpp.adapt(Request(model="m", prompt="a"), msgspec.structs.replace(model, info=info))
    assert caught.value.param == "model"


def test_the_parameters_of_a_runner(model: LocalModel) -> None:
    place = fit.Placement(context=512, slots=3, prompt_cache=8 << 20)
    found = llamacpp.parameters(model, CpuPlan(2, 4, "spin"), place, "secret", "chat")
    assert found["n_ctx"] == 1536, "the engine divides it among the slots"
    assert (found["cpuparams.n_threads"], found["cpuparams_batch.n_threads"]) == (2, 4)
    assert found["api_keys"] == ["secret"]
    assert found["hostnames"] == ["127.0.0.1"]
    assert found["cache_ram_mib"] == 8
    assert not found["ctx_shift"], "nothing is cut off silently"
    assert "n_ctx_checkpoints" not in found
    slides = msgspec.structs.replace(model, info=msgspec.structs.replace(model.info, window=512))
    found = llamacpp.parameters(slides, CpuPlan(2, 4, "spin"), place, "secret", "chat")
    assert found["n_ctx_checkpoints"] == 0, "the engine restores one that holds a wrong token"
    found = llamacpp.parameters(model, CpuPlan(2, 4, "spin"), place, "secret", "embed")
    assert found["embedding"]
    assert found["n_ubatch"] == found["n_batch"] == 512
    assert found["n_ctx"] == 3 * 512


@pytest.mark.parametrize(
    ("said", "purpose", "told"),
    [
        ("cls", "embed", "CLS"),
        ("last", "embed", "LAST"),
        ("mean", "embed", "MEAN"),
        ("", "embed", "MEAN"),
        ("rank", "embed", "MEAN"),
        ("rank", "rerank", "RANK"),
    ],
)
def test_vectors_are_pooled_as_the_model_says(
    model: LocalModel, said: str, purpose: Purpose, told: str
) -> None:
    info = msgspec.structs.replace(model.info, pooling=said)
    model = msgspec.structs.replace(model, info=info)
    placement = fit.place(model.info, fit.Wanted(slots=1, context=256, budget=1 << 30, embed=True))
    found = llamacpp.parameters(model, CpuPlan(1, 1, "spin"), placement, "key", purpose)
    assert found["pooling_type"] == {"enum": ["llama_pooling_type", f"LLAMA_POOLING_TYPE_{told}"]}
