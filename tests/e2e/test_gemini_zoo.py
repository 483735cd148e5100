"""The `google-genai` package against a real server with the real demonstration models."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from google.genai import Client, errors, types

from .served import Served, served

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("zoo-server")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("zoo") / "home") as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[Client]:
    with Client(api_key=server.key, http_options=types.HttpOptions(base_url=server.url)) as made:
        yield made


def test_an_answer_and_its_stream_are_the_same(client: Client) -> None:
    config = types.GenerateContentConfig(temperature=0, seed=7, max_output_tokens=40)
    plain = client.models.generate_content(
        model="zoo:tiny-math", contents="What is 345 + 271?", config=config
    )
    chunks = list(
        client.models.generate_content_stream(
            model="zoo:tiny-math", contents="What is 345 + 271?", config=config
        )
    )
    assert "".join(chunk.text or "" for chunk in chunks) == plain.text
    assert "616" in (plain.text or "")
    assert len(chunks) > 2
    for found in (plain, chunks[-1]):
        assert found.candidates
        assert found.candidates[0].finish_reason == types.FinishReason.STOP
        usage = found.usage_metadata
        assert usage is not None
        assert (usage.candidates_token_count or 0) > 1
    assert plain.usage_metadata is not None
    counted = client.models.count_tokens(model="zoo:tiny-math", contents="What is 345 + 271?")
    assert counted.total_tokens == plain.usage_metadata.prompt_token_count


def test_auto_chooses_for_google_clients_too(client: Client) -> None:
    found = client.models.generate_content(model="auto", contents="What is 12 + 30?")
    assert found.sdk_http_response is not None
    headers = found.sdk_http_response.headers or {}
    assert headers["x-llmrr-target"].startswith("zoo:tiny-")
    assert headers["x-llmrr-fidelity"] == "honoured"


def test_the_answer_has_the_form_that_was_asked_for(client: Client) -> None:
    schema = {
        "type": "OBJECT",
        "properties": {"word": {"type": "STRING", "enum": ["red", "blue"]}},
        "required": ["word"],
    }
    config = types.GenerateContentConfig(
        response_mime_type="application/json", response_schema=schema, max_output_tokens=40
    )
    found = client.models.generate_content(
        model="zoo:tiny-general", contents="Which colour?", config=config
    )
    assert json.loads(found.text or "")["word"] in ("red", "blue")


def test_a_function_that_must_be_called_is_called(client: Client) -> None:
    declared = types.FunctionDeclaration(
        name="weather",
        description="The weather in a city.",
        parameters=types.Schema(
            type=types.Type.OBJECT,
            properties={"city": types.Schema(type=types.Type.STRING, max_length=12)},
            required=["city"],
        ),
    )
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declared])],
        tool_config=types.ToolConfig(
            function_calling_config=types.FunctionCallingConfig(
                mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["weather"]
            )
        ),
        temperature=0,
        max_output_tokens=64,
    )
    found = client.models.generate_content(
        model="zoo:tiny-general", contents="What is the weather in Oslo?", config=config
    )
    (call,) = found.function_calls or []
    assert call.name == "weather"
    assert set(call.args or {}) == {"city"}
    assert call.id


def test_several_candidates_and_probabilities(client: Client) -> None:
    config = types.GenerateContentConfig(
        candidate_count=2, response_logprobs=True, logprobs=2, max_output_tokens=4, seed=1
    )
    found = client.models.generate_content(
        model="zoo:tiny-chat", contents="Tell me a story.", config=config
    )
    candidates = found.candidates or []
    assert [one.index or 0 for one in candidates] == [0, 1]
    told = candidates[0].logprobs_result
    assert told is not None
    assert len(told.chosen_candidates or []) == 4
    assert all((one.log_probability or 0) <= 0 for one in told.chosen_candidates or [])


def test_vectors(client: Client) -> None:
    found = client.models.embed_content(
        model="zoo:tiny-general", contents=["a cat", "a dog"], config={"task_type": "CLUSTERING"}
    )
    vectors = [one.values or [] for one in found.embeddings or []]
    assert len(vectors) == 2
    assert len(vectors[0]) == len(vectors[1]) > 0
    assert found.sdk_http_response is not None
    assert (found.sdk_http_response.headers or {})["x-llmrr-fidelity"] == "dropped=taskType"


def test_what_a_local_model_does_not_have_is_told(client: Client) -> None:
    config = types.GenerateContentConfig(
        tools=[types.Tool(google_search=types.GoogleSearch())], max_output_tokens=4
    )
    found = client.models.generate_content(model="zoo:tiny-chat", contents="Hi", config=config)
    assert found.sdk_http_response is not None
    assert (found.sdk_http_response.headers or {})["x-llmrr-fidelity"] == "dropped=tools[0]"
    picture = types.Part.from_bytes(data=b"x", mime_type="image/png")
    with pytest.raises(errors.ClientError, match="does not take images") as caught:
        client.models.generate_content(model="zoo:tiny-chat", contents=[picture])
    assert caught.value.status == "INVALID_ARGUMENT"
