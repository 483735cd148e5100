"""The `openai` package against a real server with the real demonstration models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from .served import Served, served

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("zoo-server")]

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("zoo") / "home") as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as made:
        yield made


def say(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_a_plain_answer_says_who_gave_it_and_why(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=say("What is 12 + 30?"), temperature=0
    )
    answer = raw.parse()
    assert "42" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert raw.headers["x-llmrr-target"].startswith("zoo:tiny-")
    assert raw.headers["x-llmrr-task"] == "arithmetic"
    assert raw.headers["x-llmrr-reason"]
    assert float(raw.headers["x-llmrr-cost"]) == 0.0


@pytest.mark.parametrize(
    ("question", "specialist"),
    [
        ("What is 12 + 30?", "zoo:tiny-math"),
        ("Reverse the word lemon.", "zoo:tiny-text"),
        ("Hello!", "zoo:tiny-chat"),
    ],
)
def test_auto_speed_prefers_the_fast_specialist(
    client: OpenAI, question: str, specialist: str
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto:balanced", messages=say(question), temperature=0, max_tokens=64
    )
    assert raw.headers["x-llmrr-target"] in (specialist, "zoo:tiny-general")
    assert raw.parse().choices[0].message.content


def test_a_stream_is_the_plain_answer_in_pieces(client: OpenAI) -> None:
    asked: Any = {
        "model": "zoo:tiny-math",
        "messages": say("What is 345 + 271?"),
        "temperature": 0,
        "seed": 7,
    }
    plain = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == plain.choices[0].message.content
    assert "616" in text
    assert all(chunk.choices for chunk in chunks), "no usage chunk unless it was asked for"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_include_usage_gives_one_last_chunk(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="zoo:tiny-math",
            messages=say("7 + 5"),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_n_choices(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="zoo:tiny-chat", messages=say("Tell me a short story about a cat."), n=3, seed=1
    )
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert all(c.message.content for c in answer.choices)
    assert len({c.message.content for c in answer.choices}) > 1, "choices are drawn apart"


def test_n_choices_streamed(client: OpenAI) -> None:
    finished: dict[int, str | None] = {}
    for chunk in client.chat.completions.create(
        model="zoo:tiny-math", messages=say("3 + 4"), n=2, stream=True
    ):
        for choice in chunk.choices:
            finished[choice.index] = choice.finish_reason or finished.get(choice.index)
    assert finished == {0: "stop", 1: "stop"}


def test_stop_and_max_tokens(client: OpenAI) -> None:
    asked: Any = {
        "model": "zoo:tiny-text",
        "messages": say("Spell the word lemon."),
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked).choices[0].message.content or ""
    stop = whole[2]
    cut = client.chat.completions.create(**asked, stop=[stop]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    short = client.chat.completions.create(**asked, max_tokens=2).choices[0]
    assert short.finish_reason == "length"
    assert whole.startswith(short.message.content or "?")


def test_a_seed_repeats_an_answer(client: OpenAI) -> None:
    asked: Any = {
        "model": "zoo:tiny-chat",
        "messages": say("Tell me a short story about a dog."),
        "temperature": 1.0,
    }
    one, two = (
        client.chat.completions.create(**asked, seed=11).choices[0].message.content
        for _ in range(2)
    )
    assert one == two


def test_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="zoo:tiny-math",
        messages=say("2 + 2"),
        logprobs=True,
        top_logprobs=3,
        temperature=0,
        max_tokens=4,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    for token in logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3


@pytest.mark.parametrize("more", [{}, {"top_logprobs": 0}, {"top_logprobs": 2}])
def test_a_stream_with_logprobs_says_what_the_whole_answer_says(
    client: OpenAI, more: dict[str, int]
) -> None:
    asked: dict[str, Any] = {
        "model": "zoo:tiny-math", "messages": say("2 + 2"), "logprobs": True, "temperature": 0,
        "max_tokens": 4, **more,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0]
    chunks = [c.choices[0] for c in client.chat.completions.create(**asked, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content
    assert whole.message.content
    told = [one for c in chunks if c.logprobs for one in c.logprobs.content or []]
    assert whole.logprobs is not None
    assert [one.token for one in told] == [one.token for one in whole.logprobs.content or []]
    assert {len(one.top_logprobs) for one in told} == {more.get("top_logprobs", 0)}


def test_json_schema_is_kept_to(client: OpenAI) -> None:
    schema: Any = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 200},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    for model in ("zoo:tiny-general", "zoo:tiny-math"):
        answer = client.chat.completions.create(
            model=model,
            messages=say("Extract name and age as JSON: Anna is 31 years old."),
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": schema, "strict": True},
            },
            temperature=0,
            max_tokens=100,
        )
        found = json.loads(answer.choices[0].message.content or "")
        assert set(found) == {"name", "age"}
        assert isinstance(found["age"], int)


def test_a_tool_is_called_and_its_result_told(client: OpenAI) -> None:
    messages = say("What is the weather in Paris?")
    first = client.chat.completions.create(
        model="auto", messages=messages, tools=[WEATHER], temperature=0
    )
    assert first.choices[0].finish_reason == "tool_calls"
    call: Any = (first.choices[0].message.tool_calls or [])[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "sunny"}'},
    ]
    second = client.chat.completions.create(
        model="auto", messages=messages, tools=[WEATHER], temperature=0
    )
    assert "21" in (second.choices[0].message.content or "")


def test_a_required_tool_is_called_by_any_model(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="zoo:tiny-general",
        messages=say("Hello!"),
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        max_tokens=60,
    )
    call: Any = (answer.choices[0].message.tool_calls or [])[0]
    assert call.function.name == "weather"
    assert "city" in json.loads(call.function.arguments)


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model="zoo:tiny-math",
        prompt="<|im_start|>user\n12 + 30<|im_end|>\n<|im_start|>assistant\n",
        max_tokens=32,
        temperature=0,
    )
    assert "42" in answer.choices[0].text
    pieces = client.completions.create(
        model="zoo:tiny-math",
        prompt="<|im_start|>user\n12 + 30<|im_end|>\n<|im_start|>assistant\n",
        max_tokens=32,
        temperature=0,
        stream=True,
    )
    assert "".join(c.choices[0].text for c in pieces if c.choices) == answer.choices[0].text


def test_embeddings(client: OpenAI) -> None:
    texts = ["A cat sleeps.", "A cat sleeps.", "12 + 30 = 42"]
    answer = client.embeddings.create(model="zoo:tiny-general", input=texts)
    one, same, other = (item.embedding for item in answer.data)
    assert len(one) == 256
    assert one == pytest.approx(same, abs=1e-5)
    assert one != pytest.approx(other, abs=1e-2)
    assert answer.usage.prompt_tokens > 0


def test_models(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    for name in ("auto", "zoo:tiny-math", "zoo:tiny-text", "zoo:tiny-chat", "zoo:tiny-general"):
        assert name in names
        assert client.models.retrieve(name).id == name


def test_an_unknown_model_names_the_nearest(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="zoo:tiny-math") as caught:
        client.chat.completions.create(model="tiny-maths", messages=say("hi"))
    assert caught.value.code == "model_not_found"


def test_a_prompt_that_does_not_fit_is_refused_never_cut(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="zoo:tiny-math", messages=say("12 + 30 " * 2000))
    assert caught.value.code == "context_length_exceeded"


def test_wrong_types_name_the_field(server: Served) -> None:
    answer = httpx2.post(
        f"{server.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {server.key}"},
        json={"model": "auto", "messages": [{"role": "boss", "content": "hi"}]},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].role"


def test_without_a_key_only_healthz_answers(server: Served) -> None:
    assert httpx2.get(f"{server.url}/healthz").status_code == 200
    for path in ("/v1/models", "/llmrr/ps", "/llmrr/records", "/"):
        assert httpx2.get(f"{server.url}{path}").status_code == 401, path
    wrong = OpenAI(base_url=f"{server.url}/v1", api_key="llmrr-wrong-key-0000000000", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        wrong.models.list()
    wrong.close()


async def test_a_client_that_leaves_frees_its_slot(server: Served) -> None:
    import asyncio

    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
        for _ in range(8):  # more than there are slots: a leak would make the last ones wait
            stream = await client.chat.completions.create(
                model="zoo:tiny-chat",
                messages=say("Tell me a short story about a cat."),
                stream=True,
                max_tokens=400,
            )
            async for _chunk in stream:
                break
            await stream.close()
        headers = {"authorization": f"Bearer {server.key}"}
        async with asyncio.timeout(5):
            while True:
                rows = httpx2.get(f"{server.url}/llmrr/ps", headers=headers).json()
                row = next(r for r in rows if r["name"] == "zoo:tiny-chat")
                if row["active"] == 0:
                    return
                await asyncio.sleep(0.02)


def test_records_tell_what_happened(server: Served, client: OpenAI) -> None:
    client.chat.completions.create(model="auto", messages=say("What is 5 + 6?"), user="u1")
    headers = {"authorization": f"Bearer {server.key}"}
    newest = httpx2.get(f"{server.url}/llmrr/records?limit=1", headers=headers).json()[0]
    assert newest["asked"] == "auto"
    assert newest["status"] == 200
    assert newest["task"] == "arithmetic"
    assert newest["usage"]["completion_tokens"] > 0
    assert "What is 5 + 6?" not in json.dumps(newest), "content is not kept unless asked for"
