"""Real clients of three formats, through a real server, to upstreams of three formats.

Gemini is on one side of each pair at least. Its upstream is strict (`gemini_upstream.py`); what the
others are sent is compared whole.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import MessageParam
from google.genai import Client, errors, types
from google.genai.client import AsyncClient
from openai import AsyncOpenAI
from pydantic import BaseModel

from llm_runner_router.config import Secret, Server
from llm_runner_router.providers.hosts import find
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway

from .gemini_upstream import CALLS, SIGNATURE, Gemini, chunk, status
from .upstream import Answer, Seen, Upstream, event, reply

PROVIDER_KEY = "provider-key-7f3a9b2c"
VERSIONS = {"google": "/v1beta", "openai": "/v1", "anthropic": "/v1"}
MODELS = {"google": "gemini-3-pro", "openai": "gpt-x", "anthropic": "claude-sonnet-5"}


@asynccontextmanager
async def served(answer: Answer, host: str = "google") -> AsyncIterator[tuple[str, Upstream]]:
    """A server whose model `m` is behind `answer`."""
    async with Upstream(answer) as upstream, HttpClient() as http:
        remote = RemoteTarget(
            name=f"{host}/m",
            base_url=upstream.url + VERSIONS[host],
            model=MODELS[host],
            api_key=Secret(PROVIDER_KEY),
            client=http,
            host=find(host),
        )
        gateway = FakeGateway({"m": remote}, {"m": remote})
        async with serve(gateway, Server(port=0, drain=0)) as url:
            yield url, upstream


@asynccontextmanager
async def google(url: str) -> AsyncIterator[AsyncClient]:
    async with Client(api_key=KEY, http_options=types.HttpOptions(base_url=url)).aio as api:
        yield api


def by_openai(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


HELLO: Any = [{"role": "user", "content": "hello"}]
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
SUB: Any = {"type": "function", "function": {"name": "sub"}}
WHOLE = chunk(
    {"text": "hm", "thought": True},
    {"text": "Let me see. 日本"},
    *CALLS[3]["candidates"][0]["content"]["parts"],
    finish="STOP",
)
FINAL = chunk({"text": "It is 3."}, finish="STOP")


# ---------------------------------------------------------------- OpenAI's client, Gemini's model


@pytest.mark.parametrize("stream", [True, False])
async def test_openai_calls_functions_of_gemini_and_goes_on(stream: bool) -> None:
    upstream = Gemini(*(CALLS if stream else (WHOLE,)), key=PROVIDER_KEY)
    async with served(upstream) as (url, _), by_openai(url) as api:
        asked: Any = {"model": "m", "messages": HELLO, "tools": [ADD, SUB]}
        if stream:
            async with api.chat.completions.stream(**asked) as chunks:
                async for _ in chunks:
                    pass
                found = await chunks.get_final_completion()
        else:
            found = await api.chat.completions.create(**asked)
        choice = found.choices[0]
        calls: Any = choice.message.tool_calls
        assert choice.message.content == "Let me see. 日本"
        assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
            ("f1", "add", '{"a": 1}'),
            ("f2", "sub", "{}"),
        ]
        assert choice.finish_reason == "tool_calls"
        upstream.chunks = (FINAL,)
        turn = json.loads(choice.message.model_dump_json(exclude_none=True))
        answers: Any = [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in calls]
        again = await api.chat.completions.with_raw_response.create(
            model="m", messages=[*HELLO, turn, *answers], tools=[ADD, SUB]
        )
    assert again.parse().choices[0].message.content == "It is 3."
    assert again.headers["x-llmrr-fidelity"] == "honoured"
    _, model, results = upstream.asked[1].contents
    assert [part.thought_signature for part in model.parts] == [None, SIGNATURE, None]
    answered = [part.function_response for part in results.parts if part.function_response]
    assert [one.response for one in answered] == [{"output": "3"}] * 2


async def test_openai_streams_text_and_counts_tokens() -> None:
    upstream = Gemini(chunk({"text": "hel"}), chunk({"text": "lo"}, finish="MAX_TOKENS"))
    async with served(upstream) as (url, _), by_openai(url) as api:
        stream = await api.chat.completions.create(
            model="m",
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
            temperature=0.5,
            stop=["x"],
            seed=1,
            max_completion_tokens=5,
            reasoning_effort="low",
        )
        chunks = [one async for one in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hello"
    assert chunks[-2].choices[0].finish_reason == "length"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (8, 9, 17)
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 4
    config = upstream.asked[0].generation_config
    assert config is not None
    assert config.thinking_config is not None
    assert (config.max_output_tokens, config.thinking_config.thinking_level) == (5, "LOW")


class Sum(BaseModel):
    """What is asked for."""

    total: int


async def test_openai_asks_for_a_form_and_shows_a_picture() -> None:
    upstream = Gemini(chunk({"text": '{"total": 3}'}, finish="STOP"))
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content: Any = [{"type": "text", "text": "add"}, picture]
    async with served(upstream) as (url, _), by_openai(url) as api:
        found = await api.chat.completions.parse(
            model="m", messages=[{"role": "user", "content": content}], response_format=Sum
        )
    assert found.choices[0].message.parsed == Sum(total=3)
    asked = upstream.asked[0]
    assert asked.generation_config is not None
    assert asked.generation_config.response_json_schema is not None
    assert asked.generation_config.response_json_schema["required"] == ["total"]
    assert asked.contents[0].parts[1].inline_data is not None


async def test_openai_meets_refusals_and_errors_of_gemini() -> None:
    blocked = Gemini({"promptFeedback": {"blockReason": "SAFETY"}})
    async with served(blocked) as (url, _), by_openai(url) as api:
        found = await api.chat.completions.create(model="m", messages=HELLO)
        assert found.choices[0].finish_reason == "content_filter"
    wait = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}
    limited = reply(429, status(429, "RESOURCE_EXHAUSTED", "Quota exceeded", wait))
    async with served(limited) as (url, _), by_openai(url) as api:
        with pytest.raises(openai.RateLimitError, match="Quota") as caught:
            await api.chat.completions.create(model="m", messages=HELLO)
    assert caught.value.response.headers["retry-after"] == "7"


async def test_openai_embeds_with_gemini() -> None:
    upstream = Gemini()
    async with served(upstream) as (url, _), by_openai(url) as api:
        found = await api.embeddings.create(model="m", input=["a", "b"], dimensions=2)
    assert [one.embedding for one in found.data] == [[0.0, 0.5], [1.0, 0.5]]
    assert upstream.embeds[0].requests[0].output_dimensionality == 2


# ---------------------------------------------------------------- Anthropic's client


async def test_anthropic_calls_functions_of_gemini_and_goes_on() -> None:
    upstream = Gemini(*CALLS)
    tools: Any = [
        {"name": name, "input_schema": {"type": "object"}} for name in ("add", "sub")
    ]  # fmt: skip
    asked: Any = {
        "model": "m",
        "max_tokens": 2000,
        "tools": tools,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    hello: MessageParam = {"role": "user", "content": "hello"}
    async with (
        served(upstream) as (url, _),
        AsyncAnthropic(base_url=url, api_key=KEY, max_retries=0) as api,
    ):
        async with api.messages.stream(messages=[hello], **asked) as events:
            found = await events.get_final_message()
        uses = [block for block in found.content if block.type == "tool_use"]
        assert [(use.id, use.name, use.input) for use in uses] == [
            ("f1", "add", {"a": 1}),
            ("f2", "sub", {}),
        ]
        assert (found.stop_reason, found.usage.output_tokens) == ("tool_use", 9)
        results: Any = [
            {"type": "tool_result", "tool_use_id": use.id, "content": "3"} for use in uses
        ]
        upstream.chunks = (FINAL,)
        turn: Any = {"role": "assistant", "content": found.content}
        again = await api.messages.create(
            messages=[hello, turn, {"role": "user", "content": results}], **asked
        )
    assert [block.text for block in again.content if block.type == "text"] == ["It is 3."]
    config = upstream.asked[0].generation_config
    assert config is not None
    assert config.thinking_config is not None
    assert config.thinking_config.thinking_budget == 1024
    calls = [part for part in upstream.asked[1].contents[1].parts if part.function_call]
    assert [part.thought_signature for part in calls] == [SIGNATURE, None]


# ---------------------------------------------------------------- Google's client, its own model


async def ask(http: HttpClient, url: str, body: bytes) -> tuple[int, bytes]:
    headers = [("content-type", "application/json"), ("x-goog-api-key", KEY)]
    async with http.stream("POST", url, headers=headers, body=body) as response:
        return response.status, await response.read(1 << 20)


async def test_bytes_pass_untouched_both_ways() -> None:
    sent = (
        b'{"contents": [{"parts": [{"text": "hi"}], "odd": 1.50}],'
        b'"safety_settings":[], "tomorrow": {"a":1}, "strict": false, "model": "models/m"}'
    )
    came = b'{"candidates" : [{"content":{"parts":[{"odd":1.50}]},"finishReason":"STOP"}]}'
    async with served(reply(200, came)) as (url, upstream), HttpClient() as http:
        assert await ask(http, f"{url}/v1beta/models/m:generateContent", sent) == (200, came)
        (seen,) = upstream.seen
    assert seen.target == "/v1beta/models/gemini-3-pro:generateContent"
    assert seen.headers["x-goog-api-key"] == PROVIDER_KEY
    assert seen.body == (
        b'{"contents":[{"parts": [{"text": "hi"}], "odd": 1.50}],'
        b'"safety_settings":[],"tomorrow":{"a":1}}'
    )

    async def stream(seen: Seen) -> None:
        await seen.head()
        await seen.chunk(b"data: " + came + b"\r\n\r\n")
        await seen.end()

    async with served(stream) as (url, _), HttpClient() as http:
        path = f"{url}/v1beta/models/m:streamGenerateContent"
        assert await ask(http, f"{path}?alt=sse", sent) == (200, b"data: " + came + b"\n\n")
        assert await ask(http, path, sent) == (200, b"[" + came + b"\n]")


async def test_google_talks_to_its_own_model() -> None:
    upstream = Gemini(*CALLS)
    config = types.GenerateContentConfig(
        system_instruction="Be brief.",
        tools=[types.Tool(google_search=types.GoogleSearch())],
        thinking_config=types.ThinkingConfig(include_thoughts=True),
        safety_settings=[
            types.SafetySetting(
                category=types.HarmCategory.HARM_CATEGORY_HARASSMENT,
                threshold=types.HarmBlockThreshold.BLOCK_NONE,
            )
        ],
    )
    async with served(upstream) as (url, _), google(url) as api:
        stream = await api.models.generate_content_stream(model="m", contents="hi", config=config)
        parts: list[types.Part] = []
        async for one in stream:
            assert one.candidates
            assert one.candidates[0].content is not None
            parts += one.candidates[0].content.parts or []
    assert [part.text for part in parts if part.text and not part.thought] == [
        "Let me ",
        "see. 日本",
    ]
    signed = [part.thought_signature for part in parts if part.function_call]
    assert signed == [base64.b64decode(SIGNATURE), None]
    asked = upstream.asked[0]
    assert asked.tools
    assert asked.tools[0].google_search is not None
    assert asked.safety_settings


STREAM = [event(one).replace(b"\n", b"\r\n") for one in CALLS]
CUTS = [*range(0, len(b"".join(STREAM)) - 4, 61), len(b"".join(STREAM)) - 5]


@pytest.mark.parametrize("length", CUTS)
async def test_a_stream_cut_anywhere_is_a_failure_for_every_client(length: int) -> None:
    async def cut(seen: Seen) -> None:
        await seen.head()
        await seen.chunk(b"".join(STREAM)[:length] or b": \n\n")
        await seen.end()

    async with served(cut) as (url, _), HttpClient() as http:
        path = f"{url}/v1beta/models/m:streamGenerateContent"
        body = b'{"contents":[{"parts":[{"text":"hi"}]}]}'
        for query in ("", "?alt=sse"):
            code, told = await ask(http, path + query, body)
            if code == 200:
                last = told.rpartition(b"\r\n" if query == "" else b"\n\ndata: ")[2]
                told = last.removesuffix(b"\n]")
            assert json.loads(told)["error"]["code"] == 502
        async with by_openai(url) as api:
            with pytest.raises(openai.APIError):
                await read_openai(api)


async def read_openai(api: AsyncOpenAI) -> None:
    async for _ in await api.chat.completions.create(model="m", messages=HELLO, stream=True):
        pass


async def test_a_client_that_leaves_closes_the_way_to_google() -> None:
    gone = asyncio.Event()

    async def endless(seen: Seen) -> None:
        await seen.head()
        await seen.chunk(STREAM[1])
        await seen.gone()
        gone.set()

    async with served(endless) as (url, _), google(url) as api:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in await api.models.generate_content_stream(model="m", contents="hi"):
                begun.set()

        reading = asyncio.create_task(read())
        await begun.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        async with asyncio.timeout(5):  # it takes a few turns of the loop
            await gone.wait()


# ---------------------------------------------------------------- Google's client, others' models

ASKED = types.GenerateContentConfig(
    system_instruction="Be brief.",
    temperature=0.5,
    max_output_tokens=2000,
    stop_sequences=["x"],
    safety_settings=[
        types.SafetySetting(
            category=types.HarmCategory.HARM_CATEGORY_HARASSMENT,
            threshold=types.HarmBlockThreshold.BLOCK_NONE,
        )
    ],
    tools=[
        types.Tool(
            function_declarations=[
                types.FunctionDeclaration(
                    name="add",
                    description="Adds.",
                    parameters=types.Schema(
                        type=types.Type.OBJECT,
                        properties={"a": types.Schema(type=types.Type.INTEGER)},
                    ),
                )
            ]
        )
    ],
    tool_config=types.ToolConfig(
        function_calling_config=types.FunctionCallingConfig(
            mode=types.FunctionCallingConfigMode.ANY
        )
    ),
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


async def converse(url: str, config: types.GenerateContentConfig) -> types.GenerateContentResponse:
    """Ask, answer both calls, ask again."""
    async with google(url) as api:
        found = await api.models.generate_content(model="m", contents="hi", config=config)
        assert found.candidates
        turn = found.candidates[0].content
        assert turn is not None
        answers = [
            types.Part.from_function_response(name=call.name or "", response={"output": "3"})
            for call in found.function_calls or []
        ]
        assert len(answers) == 2
        return await api.models.generate_content(
            model="m",
            contents=[types.UserContent("hi"), turn, types.Content(role="user", parts=answers)],
            config=config,
        )


async def test_google_asks_a_model_of_openai() -> None:
    calls = [
        {"id": id, "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
        for id in ("c1", "c2")
    ]
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}

    async def answer(seen: Seen) -> None:
        message: Any = {"role": "assistant", "content": None, "tool_calls": calls}
        if len(seen.json["messages"]) > 2:
            message = {"role": "assistant", "content": "It is 3."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        told = {"id": "x", "object": "chat.completion", "created": 1, "model": "gpt-x-1"}
        await reply(200, json.dumps({**told, "choices": [choice], "usage": usage}).encode())(seen)

    async with served(answer, "openai") as (url, upstream):
        found = await converse(url, ASKED)
        first, second = (seen.json for seen in upstream.seen)
    assert found.text == "It is 3."
    assert found.usage_metadata is not None
    assert found.usage_metadata.total_token_count == 10
    assert found.sdk_http_response is not None
    assert (found.sdk_http_response.headers or {})["x-llmrr-fidelity"] == "dropped=safetySettings"
    tool = {"name": "add", "description": "Adds.", "parameters": SCHEMA}
    assert first == {
        "model": "gpt-x",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
        ],
        "temperature": 0.5,
        "max_completion_tokens": 2000,
        "stop": ["x"],
        "tools": [{"type": "function", "function": tool}],
        "tool_choice": "required",
    }
    assert second["messages"][2:] == [
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "tool", "content": "3", "tool_call_id": "c2"},
    ]


async def test_google_asks_a_model_of_anthropic_that_thinks() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "c2lnbmF0dXJl"}
    hidden = {"type": "redacted_thinking", "data": "c2VjcmV0"}
    uses = [{"type": "tool_use", "id": id, "name": "add", "input": {"a": 1}} for id in ("c1", "c2")]

    async def answer(seen: Seen) -> None:
        content = [thought, hidden, *uses]
        if len(seen.json["messages"]) > 1:
            content = [{"type": "text", "text": "It is 3."}]
        usage = {"input_tokens": 7, "output_tokens": 3}
        told = {"type": "message", "role": "assistant", "content": content, "usage": usage}
        await reply(200, json.dumps({**told, "stop_reason": "end_turn"}).encode())(seen)

    config = ASKED.model_copy(
        update={
            "tool_config": None,
            "temperature": None,
            "safety_settings": None,
            "thinking_config": types.ThinkingConfig(thinking_level=types.ThinkingLevel.LOW,
                                                    include_thoughts=True),
        }
    )  # fmt: skip
    async with served(answer, "anthropic") as (url, upstream):
        found = await converse(url, config)
        first, second = (seen.json for seen in upstream.seen)
    assert found.text == "It is 3."
    assert found.sdk_http_response is not None
    assert (found.sdk_http_response.headers or {})["x-llmrr-fidelity"] == "honoured"
    assert first == {
        "model": "claude-sonnet-5",
        "max_tokens": 2000,
        "stop_sequences": ["x"],
        "tools": [{"name": "add", "description": "Adds.", "input_schema": SCHEMA}],
        "output_config": {"effort": "low"},
        "thinking": {"type": "adaptive", "display": "summarized"},
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    }
    assert second["messages"][1:] == [
        {"role": "assistant", "content": [thought, hidden, *uses]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": id, "content": "3"} for id in ("c1", "c2")
            ],
        },
    ]


async def test_google_meets_the_errors_of_others_in_its_own_words() -> None:
    limited = b'{"error":{"message":"slow down","type":"rate_limit_error","code":"rate_limit"}}'
    async with (
        served(reply(429, limited, b"retry-after: 3\r\n"), "openai") as (url, _),
        google(url) as api,
    ):
        with pytest.raises(errors.ClientError) as caught:
            await api.models.generate_content(model="m", contents="hi")
    error = caught.value
    assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
    waits = [d["retryDelay"] for d in error.details["error"]["details"] if "retryDelay" in d]
    assert waits == ["3.000s"]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_responses_api_calls_functions_of_gemini_and_goes_on(stream: bool) -> None:
    upstream = Gemini(*(CALLS if stream else (WHOLE,)))
    tools: Any = [
        {"type": "function", "name": name, "parameters": {"type": "object"}, "strict": False}
        for name in ("add", "sub")
    ]
    asked: Any = {"model": "m", "tools": tools, "store": False}
    async with served(upstream) as (url, _), by_openai(url) as api:
        if stream:
            async with api.responses.stream(input="hello", **asked) as events:
                async for _ in events:
                    pass
                found = await events.get_final_response()
        else:
            found = await api.responses.create(input="hello", **asked)
        calls = [item for item in found.output if item.type == "function_call"]
        assert [(c.call_id, c.name) for c in calls] == [("f1", "add"), ("f2", "sub")]
        upstream.chunks = (FINAL,)
        turn: Any = [item.model_dump(mode="json", exclude_none=True) for item in found.output]
        answers: Any = [
            {"type": "function_call_output", "call_id": c.call_id, "output": "3"} for c in calls
        ]
        again = await api.responses.create(
            input=[{"role": "user", "content": "hello"}, *turn, *answers], **asked
        )
    assert again.output_text == "It is 3."
    signed = [p.thought_signature for p in upstream.asked[1].contents[1].parts if p.function_call]
    assert signed == [SIGNATURE, None]
