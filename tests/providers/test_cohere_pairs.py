"""Real clients of other formats, through a real server, to Cohere's upstream, which is strict."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic import BaseModel

from llm_runner_router.config import Secret, Server
from llm_runner_router.providers.hosts import find
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway

from .cohere_upstream import CALLED, CALLS, SAID, WHOLE, Cohere, block, framed, message, start
from .upstream import Answer, Seen, Upstream, reply

VERSIONS = {"cohere": "/v2", "openai": "/v1", "anthropic": "/v1"}
MODELS = {"cohere": "command-a", "openai": "gpt-x", "anthropic": "claude-sonnet-5"}
HELLO: Any = [{"role": "user", "content": "hello"}]
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
SUB: Any = {"type": "function", "function": {"name": "sub"}}


@asynccontextmanager
async def served(answer: Answer, host: str = "cohere") -> AsyncIterator[tuple[str, Upstream]]:
    """A server whose model `m` is behind `answer`."""
    async with Upstream(answer) as upstream, HttpClient() as http:
        remote = RemoteTarget(
            name=f"{host}/m",
            base_url=upstream.url + VERSIONS[host],
            model=MODELS[host],
            api_key=Secret("provider-key-7f3a9b2c"),
            client=http,
            host=find(host),
        )
        gateway = FakeGateway({"m": remote}, {"m": remote}, rerankers={"m": remote})
        async with serve(gateway, Server(port=0, drain=0)) as url:
            yield url, upstream


def by_openai(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


# ---------------------------------------------------------------- OpenAI's client


@pytest.mark.parametrize("stream", [True, False])
async def test_openai_calls_functions_of_cohere_and_goes_on(stream: bool) -> None:
    upstream = Cohere(*CALLS, body=CALLED)
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
        assert [(one.id, one.function.name, one.function.arguments) for one in calls] == [
            ("c1", "add", '{"a": 1}'),
            ("c2", "sub", "{}"),
        ]
        assert choice.finish_reason == "tool_calls"
        upstream.body = WHOLE
        turn = json.loads(choice.message.model_dump_json(exclude_none=True))
        answers: Any = [{"role": "tool", "tool_call_id": one.id, "content": "3"} for one in calls]
        again = await api.chat.completions.with_raw_response.create(
            model="m", messages=[*HELLO, turn, *answers], tools=[ADD, SUB]
        )
    assert again.parse().choices[0].message.content == "It is 3."
    assert again.headers["x-llmrr-fidelity"] == "honoured"
    _, spoken, *results = json.loads(_json(upstream.asked[1].messages))
    assert spoken["tool_plan"] == "Let me see. 日本"
    assert [one["id"] for one in spoken["tool_calls"]] == ["c1", "c2"]
    assert [one["tool_call_id"] for one in results] == ["c1", "c2"]


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


async def test_openai_streams_text_and_counts_tokens() -> None:
    upstream = Cohere(*SAID)
    async with served(upstream) as (url, _), by_openai(url) as api:
        stream = await api.chat.completions.create(
            model="m",
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
            temperature=0.5,
            top_p=1,
            stop=["x"],
            seed=1,
            max_completion_tokens=5,
            reasoning_effort="low",
            extra_body={"safety_mode": "STRICT"},
        )
        chunks = [one async for one in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "It is 3."
    assert chunks[-2].choices[0].finish_reason == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (8, 5, 13)
    (asked,) = upstream.asked
    assert (asked.p, asked.max_tokens, asked.safety_mode) == (0.99, 5, "STRICT")
    assert asked.thinking is not None
    assert asked.thinking.token_budget == 2048


class Sum(BaseModel):
    """What is asked for."""

    total: int


async def test_openai_asks_for_a_form_and_shows_a_picture() -> None:
    told = dict(WHOLE["message"], content=[{"type": "text", "text": '{"total": 3}'}])
    upstream = Cohere(body={**WHOLE, "message": told})
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content: Any = [{"type": "text", "text": "add"}, picture]
    async with served(upstream) as (url, _), by_openai(url) as api:
        found = await api.chat.completions.parse(
            model="m", messages=[{"role": "user", "content": content}], response_format=Sum
        )
        with pytest.raises(openai.BadRequestError, match="together with `tools`") as caught:
            await api.chat.completions.create(
                model="m",
                messages=HELLO,
                tools=[ADD],
                response_format={"type": "json_object"},
            )
    assert caught.value.param == "response_format"
    assert found.choices[0].message.parsed == Sum(total=3)
    (asked,) = upstream.asked
    assert asked.response_format is not None
    assert asked.response_format.json_schema is not None
    assert asked.response_format.json_schema["required"] == ["total"]


async def test_openai_embeds_with_cohere_and_is_told_how() -> None:
    upstream = Cohere()
    async with served(upstream) as (url, _), by_openai(url) as api:
        raw = await api.embeddings.with_raw_response.create(
            model="m", input=["a", "b"], dimensions=256
        )
    found = raw.parse()
    assert raw.headers["x-llmrr-fidelity"] == "emulated=taskType"
    assert [one.embedding for one in found.data] == [[0.0, 0.5], [1.0, 0.5]]
    assert upstream.embeds[0].output_dimension == 256


async def test_openai_meets_errors_of_cohere() -> None:
    async with (
        served(reply(429, message("trial key"))) as (url, _),
        by_openai(url) as api,
    ):
        with pytest.raises(openai.RateLimitError, match="trial key"):
            await api.chat.completions.create(model="m", messages=HELLO)


async def test_openai_is_told_of_a_stream_that_was_cut() -> None:
    async def cut(seen: Seen) -> None:
        await seen.head()
        for one in (start(), *block(0, "text", "It ")):
            await seen.chunk(framed(one))
        await seen.end()

    async with served(cut) as (url, _), by_openai(url) as api:
        stream = await api.chat.completions.create(model="m", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="without a finish"):
            async for _ in stream:
                pass


async def test_leaving_closes_the_upstream() -> None:
    gone = asyncio.Event()

    async def endless(seen: Seen) -> None:
        await seen.head()
        await seen.chunk(framed(start()))
        await seen.chunk(framed(block(0, "text", "It ")[1]))
        await seen.gone()
        gone.set()

    async with served(endless) as (url, _), by_openai(url) as api:
        stream = await api.chat.completions.create(model="m", messages=HELLO, stream=True)
        await anext(aiter(stream))
        await stream.close()
        async with asyncio.timeout(5):
            await gone.wait()


# ---------------------------------------------------------------- Anthropic's client


async def test_anthropic_calls_functions_of_cohere_and_goes_on() -> None:
    upstream = Cohere(*CALLS, body=WHOLE)
    asked: Any = {
        "model": "m",
        "max_tokens": 2000,
        "tools": [{"name": n, "input_schema": {"type": "object"}} for n in ("add", "sub")],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    hello: Any = {"role": "user", "content": "hello"}
    async with (
        served(upstream) as (url, _),
        AsyncAnthropic(base_url=url, api_key=KEY, max_retries=0) as api,
    ):
        async with api.messages.stream(messages=[hello], **asked) as events:
            found = await events.get_final_message()
        kinds = [one.type for one in found.content]
        assert kinds == ["thinking", "text", "tool_use", "tool_use"]
        assert (found.stop_reason, found.usage.output_tokens) == ("tool_use", 5)
        results: Any = [
            {"type": "tool_result", "tool_use_id": one.id, "content": "3"}
            for one in found.content
            if one.type == "tool_use"
        ]
        turn: Any = {"role": "assistant", "content": found.content}
        again = await api.messages.create(
            messages=[hello, turn, {"role": "user", "content": results}], **asked
        )
    assert [one.text for one in again.content if one.type == "text"] == ["It is 3."]
    first, second = upstream.asked
    assert first.thinking is not None
    assert first.thinking.token_budget == 1024
    # What Cohere's model thought comes back to it: it signs nothing.
    _, spoken, *_ = json.loads(_json(second.messages))
    assert spoken["content"] == [{"type": "thinking", "thinking": "hm"}]
    assert spoken["tool_plan"] == "Let me see. 日本"
