"""Real clients, through a real server, to real formats of upstreams; Cohere's is on one side.

Its upstream is strict (`cohere_upstream.py`); what the others are sent is compared whole.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import cohere
import msgspec
import openai
import pytest
from anthropic import AsyncAnthropic
from cohere.core.api_error import ApiError
from openai import AsyncOpenAI
from pydantic import BaseModel

from llm_runner_router.config import Secret, Server
from llm_runner_router.providers.hosts import find
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway

from .cohere_upstream import CALLED, CALLS, SAID, WHOLE, Cohere, block, framed, message, start
from .upstream import Answer, Seen, Upstream, completion, event, reply
from .upstream import stream as stream_of

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


# ---------------------------------------------------------------- Cohere's client, its own model


async def ask(http: HttpClient, url: str, body: bytes) -> tuple[int, bytes]:
    headers = [("content-type", "application/json"), ("authorization", f"Bearer {KEY}")]
    async with http.stream("POST", f"{url}/v2/chat", headers=headers, body=body) as response:
        return response.status, await response.read(1 << 20)


async def test_bytes_pass_untouched_both_ways() -> None:
    said = b'[{"role": "user", "content": "hi", "odd": 1.50}]'
    sent = b'{"messages": %b, "tomorrow": {"a":1}, "strict": false, "model": "m"}' % said
    answered = json.dumps(WHOLE, indent=1).encode()
    stream = b"".join(framed(one) for one in (*CALLS[:-1], {"type": "tomorrow", "x": 1}, CALLS[-1]))
    seen_bodies = []

    async def answer(seen: Seen) -> None:
        seen_bodies.append(seen.body)
        if seen.json["stream"]:
            await seen.head()
            await seen.chunk(stream)
            await seen.end()
        else:
            await reply(200, answered)(seen)

    async with served(answer) as (url, _), HttpClient() as http:
        assert await ask(http, url, sent) == (200, answered)
        streaming = sent[:-1] + b', "stream": true}'
        assert await ask(http, url, streaming) == (200, stream)
    for body in seen_bodies:
        assert said in body
        assert b'"tomorrow":{"a":1}' in body
        fields = json.loads(body)
        assert (fields["model"], "strict" in fields) == ("command-a", False)


async def test_a_stream_of_coheres_that_fails_ends_so() -> None:
    failed = {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "oh no"}}
    upstream = Cohere(start(), *block(0, "text", "It "), failed)
    async with served(upstream) as (url, _), by_cohere(url) as api:
        events = [one async for one in api.chat_stream(model="m", messages=HELLO)]
        upstream.body = {**WHOLE, "finish_reason": "ERROR"}
        with pytest.raises(ApiError, match="gave up"):
            await api.chat(model="m", messages=HELLO)
    end: Any = events[-1]
    assert (end.type, end.delta.finish_reason) == ("message-end", "ERROR")
    assert "oh no" in end.delta.error


# ---------------------------------------------------------------- Cohere's client, others' models


def by_cohere(url: str) -> cohere.AsyncClientV2:
    return cohere.AsyncClientV2(api_key=KEY, base_url=url, max_retries=0)


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event({"id": "c1", "object": "chat.completion.chunk", "choices": [choice]})


def piece(index: int, arguments: str, **named: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": named.pop("name")} if named else {})}
    return {"index": index, "function": function, **named}


OPENAI_CALLS = (
    chunk(role="assistant", content=""),
    chunk(content="Let me see. 日本"),
    chunk(tool_calls=[piece(0, "", name="add", id="c1", type="function")]),
    chunk(tool_calls=[piece(0, '{"a": 1}')]),
    chunk(tool_calls=[piece(1, "{}", name="sub", id="c2", type="function")]),
    chunk("tool_calls"),
    event(b"[DONE]"),
)
COHERE_SUB: Any = {**SUB, "function": {"name": "sub", "parameters": {"type": "object"}}}


async def test_cohere_calls_functions_of_openai_and_goes_on() -> None:
    async with served(stream_of(OPENAI_CALLS), "openai") as (url, server), by_cohere(url) as api:
        tools: Any = [ADD, COHERE_SUB]
        made = []
        stream = api.chat_stream(model="m", messages=HELLO, tools=tools, tool_choice="REQUIRED")
        async for one in stream:
            if one.type == "tool-call-start":
                call: Any = one.delta
                made.append(call.message.tool_calls)
            elif one.type == "tool-call-delta":
                more: Any = one.delta
                made[-1].function.arguments += more.message.tool_calls.function.arguments
        assert [(one.id, one.function.name, one.function.arguments) for one in made] == [
            ("c1", "add", '{"a": 1}'),
            ("c2", "sub", "{}"),
        ]
        results: Any = [{"role": "tool", "tool_call_id": one.id, "content": "3"} for one in made]
        turn: Any = {"role": "assistant", "tool_plan": "Let me see.", "tool_calls": made}
        server.answer = reply(200, completion("It is 3."))
        again = await api.with_raw_response.chat(
            model="m",
            messages=[*HELLO, turn, *results],
            tools=tools,
            k=3,
            safety_mode="STRICT",
            response_format={"type": "json_object", "json_schema": {"type": "object"}},
        )
    content: Any = again.data.message.content
    assert content[0].text == "It is 3."
    told = again.headers["x-llmrr-fidelity"]
    assert told == "dropped=safety_mode, top_k"
    first, second = (one.json for one in server.seen)
    assert first["tool_choice"] == "required"
    assert [one["function"]["name"] for one in first["tools"]] == ["add", "sub"]
    assert second["messages"][1]["content"] == "Let me see."
    assert [one["id"] for one in second["messages"][1]["tool_calls"]] == ["c1", "c2"]
    assert second["messages"][2] == {"role": "tool", "tool_call_id": "c1", "content": "3"}
    assert second["response_format"]["json_schema"]["schema"] == {"type": "object"}


async def test_cohere_embeds_and_reranks_elsewhere() -> None:
    vectors = {"data": [{"index": 0, "embedding": [0.5, 1.0]}], "usage": {"prompt_tokens": 3}}
    ranked = {"results": [{"index": 1, "relevance_score": 0.5}], "usage": {"prompt_tokens": 4}}

    async def answer(seen: Seen) -> None:
        found = vectors if seen.target == "/v1/embeddings" else ranked
        await reply(200, json.dumps(found).encode())(seen)

    async with served(answer, "openai") as (url, _), by_cohere(url) as api:
        raw = await api.with_raw_response.embed(
            model="m", input_type="search_query", texts=["a"], truncate="END"
        )
        order = await api.rerank(model="m", query="q", documents=["a", "b"], top_n=1)
    assert raw.data.embeddings.float_ == [[0.5, 1.0]]
    assert raw.headers["x-llmrr-fidelity"] == "dropped=input_type, truncate"
    assert [(one.index, one.relevance_score) for one in order.results] == [(1, 0.5)]


def anthropic_events(*kinds: tuple[str, dict[str, Any]]) -> Answer:
    return stream_of(
        tuple(
            f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()
            for kind, fields in kinds
        )
    )


async def test_cohere_asks_anthropic() -> None:
    answer = anthropic_events(
        ("message_start", {"message": {"role": "assistant", "usage": {"input_tokens": 4}}}),
        ("content_block_start", {"index": 0, "content_block": {"type": "thinking"}}),
        ("content_block_delta", {"index": 0, "delta": {"type": "x", "thinking": "hm"}}),
        ("content_block_stop", {"index": 0}),
        ("content_block_start", {"index": 1, "content_block": {"type": "text", "text": ""}}),
        ("content_block_delta", {"index": 1, "delta": {"type": "text_delta", "text": "It is 3."}}),
        ("content_block_stop", {"index": 1}),
        (
            "message_delta",
            {"delta": {"stop_reason": "stop_sequence", "stop_sequence": "x"},
             "usage": {"output_tokens": 6}},
        ),
        ("message_stop", {}),
    )  # fmt: skip
    async with served(answer, "anthropic") as (url, server), by_cohere(url) as api:
        stream = api.chat_stream(
            model="m",
            messages=[{"role": "system", "content": "Be kind."}, *HELLO],
            max_tokens=2000,
            stop_sequences=["x"],
            thinking={"type": "enabled"},
            documents=["It is red."],
            citation_options={"mode": "OFF"},
        )
        events: list[Any] = [one async for one in stream]
    pieces = [one.delta.message.content for one in events if one.type == "content-delta"]
    assert [(one.thinking, one.text) for one in pieces] == [("hm", None), (None, "It is 3.")]
    assert [one.index for one in events if one.type == "content-start"] == [0, 1]
    end = events[-1].delta
    assert end.finish_reason == "STOP_SEQUENCE"
    assert (end.usage.tokens.input_tokens, end.usage.tokens.output_tokens) == (4, 6)
    asked = server.seen[0].json
    assert asked["system"] == [{"type": "text", "text": "Be kind."}]
    assert [one["text"] for one in asked["messages"][0]["content"]] == [
        "Document 0:\nIt is red.\n\n",
        "hello",
    ]
    assert (asked["stop_sequences"], asked["thinking"]["type"]) == (["x"], "adaptive")


async def test_what_is_cut_upstream_never_ends_well_for_cohere() -> None:
    whole = b"".join(OPENAI_CALLS)
    finish = whole.index(OPENAI_CALLS[-2])
    async with served(reply(500, b""), "openai") as (url, server), by_cohere(url) as api:
        for cut in range(len(OPENAI_CALLS[0]), finish, 37):

            async def answer(seen: Seen, data: bytes = whole[:cut]) -> None:
                await seen.head()
                await seen.chunk(data)
                await seen.end()

            server.answer = answer
            events: list[Any] = [
                one async for one in api.chat_stream(model="m", messages=HELLO, tools=[ADD])
            ]
            assert events[-1].type == "message-end"
            assert events[-1].delta.finish_reason == "ERROR"
