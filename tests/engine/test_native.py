"""What a local model makes of parameters that only others have: done, or noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_runner_router.engine.adapting import native
from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.fidelity import Receipt
from llm_runner_router.models.info import LocalModel, ModelInfo
from llm_runner_router.surfaces import anthropic, ollama, openai_chat
from llm_runner_router.types import ModelCard, Request

SWITCH = "{% if enable_thinking %}<think>{% endif %}"
EFFORT = "{{ reasoning_effort }}"
HI = [{"role": "user", "content": "hi"}]


def model(template: str = "") -> LocalModel:
    info = ModelInfo(format="gguf", architecture="llama", chat_template=template)
    return LocalModel("m", Path("m.gguf"), info, ModelCard("m"))


def openai(**fields: Any) -> Request:
    return openai_chat.decode(json.dumps({"model": "m", "messages": HI, **fields}).encode())


def claude(**fields: Any) -> Request:
    body = {"model": "m", "max_tokens": 9, "messages": HI, **fields}
    return anthropic.decode(json.dumps(body).encode())


def fates(request: Request, template: str = "") -> tuple[Request, dict[str, str]]:
    receipt = Receipt()
    found = native(request, model(template), receipt)
    return found, {name: mark.fate for name, mark in receipt.marks.items()}


def test_nothing_is_noted_of_an_ordinary_request() -> None:
    request = openai(temperature=0, seed=3, logit_bias={"5": 1}, store=False, modalities=["text"])
    assert fates(request) == (request, {})


def test_parameters_that_no_runner_has_are_noted() -> None:
    asked = openai(store=True, verbosity="low", functions=[{"name": "f"}], service_tier="flex")
    names = ("store", "verbosity", "functions", "service_tier")
    assert fates(asked)[1] == dict.fromkeys(names, "dropped")
    receipt = Receipt()
    strict = native(openai(verbosity="low", strict=True), model(), receipt)
    with pytest.raises(Unsupported, match="verbosity"):
        receipt.check(strict)


def test_what_another_dialect_says_beyond_is_noted_and_its_bytes_are_not_sent() -> None:
    asked = claude(
        inference_geo="eu", tools=[{"type": "web_search_20250305", "name": "web_search"}]
    )
    found, marks = fates(asked)
    assert (found.wire, found.extra, found.tools) == (None, {}, ())
    assert marks == {"inference_geo": "dropped", "tools[0]": "dropped"}


def test_samplers_that_ollama_has_from_llama_cpp_reach_the_runner() -> None:
    options = {"min_p": 0.1, "repeat_penalty": 1.1, "num_ctx": 4096, "temperature": 0}
    body = {"model": "m", "messages": HI, "options": options}
    asked = ollama.decode_chat(json.dumps(body).encode()).request
    assert asked is not None
    found, marks = fates(asked)
    assert (found.wire, set(found.extra)) == (None, {"min_p", "repeat_penalty"})
    assert (found.sampling.temperature, marks) == (0, {"num_ctx": "dropped"})


@pytest.mark.parametrize(
    "asked", [openai(reasoning_effort="none"), claude(thinking={"type": "disabled"})]
)
def test_thinking_is_switched_off_whoever_asks(asked: Request) -> None:
    found, marks = fates(asked, SWITCH)
    fields = found.extra if found.wire is None else found.wire.fields
    assert json.loads(bytes(fields["chat_template_kwargs"])) == {"enable_thinking": False}
    assert marks == {"reasoning": "translated"}
    assert fates(asked)[1] == {}, "a model that cannot think does not"


def test_an_effort_goes_to_a_template_that_knows_it_and_the_clients_own_words_count() -> None:
    found, marks = fates(openai(reasoning_effort="high"), EFFORT)
    assert found.wire is not None
    given = json.loads(bytes(found.wire.fields["chat_template_kwargs"]))
    assert (given, marks) == ({"reasoning_effort": "high"}, {})
    own = {"enable_thinking": True, "x": 1}
    found, _ = fates(openai(reasoning_effort="none", chat_template_kwargs=own), SWITCH)
    assert found.wire is not None
    assert json.loads(bytes(found.wire.fields["chat_template_kwargs"])) == own
    assert fates(openai(reasoning_effort="high"))[1] == {"reasoning": "dropped"}
    with pytest.raises(BadRequest, match="object"):
        fates(openai(reasoning_effort="none", chat_template_kwargs=[1]), SWITCH)
