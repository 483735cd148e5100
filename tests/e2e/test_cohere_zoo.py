"""The `cohere` package against a real server with the real demonstration models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import cohere
import pytest

from .served import Served, served

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("zoo-server")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("zoo") / "home") as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[cohere.ClientV2]:
    with cohere.ClientV2(api_key=server.key, base_url=server.url, max_retries=0) as made:
        yield made


def said(content: Any) -> Any:
    return [{"role": "user", "content": content}]


def test_an_answer_and_its_stream_are_the_same(client: cohere.ClientV2) -> None:
    asked: Any = {
        "model": "zoo:tiny-math",
        "messages": said("What is 345 + 271?"),
        "temperature": 0,
        "seed": 7,
        "max_tokens": 40,
    }
    plain = client.chat(**asked)
    events: list[Any] = list(client.chat_stream(**asked))
    content: Any = plain.message.content
    pieces = [one.delta.message.content.text for one in events if one.type == "content-delta"]
    assert "".join(pieces) == content[0].text
    assert "616" in content[0].text
    assert len(pieces) > 1
    end = events[-1].delta
    assert (plain.finish_reason, end.finish_reason) == ("COMPLETE", "COMPLETE")
    for usage in (plain.usage, end.usage):
        assert usage is not None
        assert usage.tokens is not None
        assert (usage.tokens.output_tokens or 0) > 1


def test_auto_chooses_for_cohere_clients_too(client: cohere.ClientV2) -> None:
    raw = client.with_raw_response.chat(model="auto", messages=said("What is 12 + 30?"))
    assert raw.headers["x-llmrr-target"].startswith("zoo:tiny-")
    assert raw.headers["x-llmrr-fidelity"] == "honoured"


def test_the_answer_has_the_form_that_was_asked_for(client: cohere.ClientV2) -> None:
    schema = {
        "type": "object",
        "properties": {"word": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["word"],
    }
    found = client.chat(
        model="zoo:tiny-general",
        messages=said("Which colour?"),
        response_format=cohere.JsonObjectResponseFormatV2(json_schema=schema),
        max_tokens=40,
    )
    content: Any = found.message.content
    assert json.loads(content[0].text)["word"] in ("red", "blue")


def test_a_function_that_must_be_called_is_called_and_answered(client: cohere.ClientV2) -> None:
    tool: Any = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 12}},
                "required": ["city"],
            },
        },
    }
    asked: Any = {"model": "zoo:tiny-general", "tools": [tool], "temperature": 0, "max_tokens": 64}
    question = said("What is the weather in Oslo?")
    found = client.chat(messages=question, tool_choice="REQUIRED", **asked)
    (call,) = found.message.tool_calls or []
    assert found.finish_reason == "TOOL_CALL"
    assert call.function is not None
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments or "")) == {"city"}
    turn: Any = found.message
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    again = client.chat(messages=[*question, turn, result], tool_choice="NONE", **asked)
    content: Any = again.message.content
    assert content[0].text


def test_probabilities(client: cohere.ClientV2) -> None:
    found = client.chat(
        model="zoo:tiny-chat", messages=said("Tell me a story."), logprobs=True, max_tokens=4
    )
    assert len(found.logprobs or []) == 4
    assert all(value <= 0 for one in found.logprobs or [] for value in one.logprobs or [])


def test_vectors(client: cohere.ClientV2) -> None:
    raw = client.with_raw_response.embed(
        model="zoo:tiny-general", input_type="clustering", texts=["a cat", "a dog"]
    )
    vectors = raw.data.embeddings.float_ or []
    assert len(vectors) == 2
    assert len(vectors[0]) == len(vectors[1]) > 0
    assert raw.headers["x-llmrr-fidelity"] == "dropped=input_type"


def test_what_a_local_model_does_not_have_is_told(client: cohere.ClientV2) -> None:
    raw = client.with_raw_response.chat(
        model="zoo:tiny-chat",
        messages=said("Hi"),
        max_tokens=4,
        documents=["The sky is red."],
        safety_mode="STRICT",
    )
    assert raw.headers["x-llmrr-fidelity"] == "dropped=safety_mode, citation_options"
    picture: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(cohere.BadRequestError, match="does not take images"):
        client.chat(model="zoo:tiny-chat", messages=said([picture]))
    with pytest.raises(cohere.BadRequestError, match="rerank"):
        client.rerank(model="zoo:tiny-chat", query="q", documents=["a"])
