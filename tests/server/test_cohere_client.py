"""The `cohere` package against a real server: what its users do, what failures look like."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import cohere
import pytest
from cohere.core.api_error import ApiError
from msgspec import Raw

from llm_runner_router.config import Server
from llm_runner_router.errors import (
    ContextTooLong,
    Overloaded,
    RateLimited,
    RunnerCrashed,
    RunnerError,
    StreamBroken,
    UnknownModel,
    UpstreamTimeout,
)
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeEmbedder, FakeReranker, FakeTarget, Gate, deltas_of
from llm_runner_router.types import (
    Call,
    Delta,
    ImagePart,
    ImageURL,
    Message,
    Price,
    Request,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)

HELLO: Any = [{"role": "user", "content": "hello"}]
KIND: Any = [{"role": "system", "content": "Be kind."}, *HELLO]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def talks(request: Request, call: Call) -> list[Delta]:
    return list(deltas_of("Good morning. 日本", usage=Usage(7, 3, cached_tokens=2)))


def calls(request: Request, call: Call) -> list[Delta]:
    assert request.tools[0].name == "weather"
    if request.messages[-1].role == "tool":
        return list(deltas_of("It rains."))
    return [
        Delta(role="assistant", reasoning="hm"),
        Delta(text="Let me see."),
        Delta(tool_calls=(ToolCallDelta(0, "c1", "weather", '{"city":'),)),
        Delta(tool_calls=(ToolCallDelta(0, arguments='"Oslo"}'),)),
        Delta(tool_calls=(ToolCallDelta(1, None, "weather", '{"city":"Rome"}'),)),
        Delta(finish="tool_calls", usage=Usage(9, 9)),
    ]


@asynccontextmanager
async def client(
    script: Any = talks, key: str = KEY, **options: Any
) -> AsyncIterator[tuple[cohere.AsyncClientV2, FakeTarget]]:
    target = FakeTarget("a/m:1", script, price=Price(1.0, 2.0))
    served = FakeGateway(
        {"a/m:1": target}, {"e": FakeEmbedder("e")}, rerankers={"r": FakeReranker("r")}
    )
    async with (
        serve(served, Server(port=0, drain=0, **options)) as url,
        cohere.AsyncClientV2(api_key=key, base_url=url, max_retries=0) as api,
    ):
        yield api, target


async def streamed(api: cohere.AsyncClientV2, **asked: Any) -> list[Any]:
    asked = {"model": "a/m:1", "messages": HELLO, **asked}
    return [event async for event in api.chat_stream(**asked)]


def texts(events: list[Any]) -> str:
    deltas = [event.delta.message.content for event in events if event.type == "content-delta"]
    return "".join(content.text or "" for content in deltas)


# ---------------------------------------------------------------- answers


async def test_an_answer_and_its_headers() -> None:
    async with client() as (api, target):
        raw = await api.with_raw_response.chat(
            model="a/m:1",
            messages=KIND,
            temperature=0.5,
            p=0.9,
            k=4,
            max_tokens=9,
            seed=3,
            stop_sequences=["x"],
            frequency_penalty=0.5,
        )
    found = raw.data
    assert found.message.role == "assistant"
    assert [part.type for part in found.message.content or ()] == ["text"]
    content: Any = found.message.content
    assert content[0].text == "Good morning. 日本"
    assert found.finish_reason == "COMPLETE"
    assert found.id
    usage = found.usage
    assert usage is not None
    assert usage.tokens is not None
    assert (usage.tokens.input_tokens, usage.tokens.output_tokens) == (7, 3)
    assert usage.cached_tokens == 2
    assert raw.headers["x-llmrr-fidelity"] == "honoured"
    asked = target.requests[0]
    assert [m.role for m in asked.messages] == ["system", "user"]
    draw = asked.sampling
    assert (draw.temperature, draw.top_p, draw.top_k, draw.max_tokens) == (0.5, 0.9, 4, 9)
    assert (draw.seed, draw.stop, draw.frequency_penalty) == (3, ("x",), 0.5)
    assert not asked.stream


async def test_a_stream() -> None:
    async with client() as (api, target):
        events = await streamed(api)
    assert [event.type for event in events] == [
        "message-start",
        "content-start",
        "content-delta",
        "content-delta",
        "content-delta",
        "content-end",
        "message-end",
    ]
    assert texts(events) == "Good morning. 日本"
    assert events[0].delta.message.role == "assistant"
    assert events[0].id
    end = events[-1].delta
    assert (end.finish_reason, end.error) == ("COMPLETE", None)
    assert (end.usage.tokens.input_tokens, end.usage.billed_units.output_tokens) == (7, 3)
    assert target.requests[0].stream
    assert target.running == 0


async def test_a_sync_client() -> None:
    def talk(url: str) -> tuple[str, str]:
        with cohere.ClientV2(api_key=KEY, base_url=url, max_retries=0) as api:
            content: Any = api.chat(model="m", messages=HELLO).message.content
            return content[0].text, texts(list(api.chat_stream(model="m", messages=HELLO)))

    async with serve(FakeGateway({"m": FakeTarget("m", talks)}), Server(port=0, drain=0)) as url:
        assert await asyncio.to_thread(talk, url) == ("Good morning. 日本",) * 2


async def test_silence_between_events_is_no_event() -> None:
    gate = Gate()
    script = [Delta(role="assistant", text="a"), gate, Delta(text="b"), Delta(finish="stop")]
    async with client(script, keep_alive_comment=0.01) as (api, _):
        stream = aiter(api.chat_stream(model="a/m:1", messages=HELLO))
        events: list[Any] = [await anext(stream)]
        # The server counts silence from when its first frame was out.
        asyncio.get_running_loop().call_later(0.05, gate.open)
        events += [event async for event in stream]
    assert texts(events) == "ab"
    assert [event.type for event in events].count("message-start") == 1


def joined(events: list[Any]) -> list[tuple[str, str, str]]:
    """The calls of a stream, as a client reads them that has one at a time."""
    made: list[tuple[str, str, str]] = []
    current: Any = None
    for event in events:
        if event.type == "tool-call-start":
            assert current is None, "two calls at once"
            call = event.delta.message.tool_calls
            current = [call.id, call.function.name, call.function.arguments]
        elif event.type == "tool-call-delta":
            current[2] += event.delta.message.tool_calls.function.arguments
        elif event.type == "tool-call-end":
            assert event.index == len(made)
            made.append(tuple(current))
            current = None
    assert current is None
    return made


async def test_calls_and_their_answers_streamed_and_whole() -> None:
    async with client(calls) as (api, target):
        events = await streamed(api, tools=[WEATHER])
        found = await api.chat(model="a/m:1", messages=HELLO, tools=[WEATHER])
        made: Any = found.message.tool_calls
        whole = [(one.id, one.function.name, one.function.arguments) for one in made]
        results: Any = [
            {
                "role": "tool",
                "tool_call_id": made[0].id,
                "content": [{"type": "document", "document": {"data": {"sky": "rain"}}}],
            },
            {"role": "tool", "tool_call_id": made[1].id, "content": "sun"},
        ]
        turn: Any = found.message
        again = await api.chat(
            model="a/m:1", messages=[*HELLO, turn, *results], tools=[WEATHER], strict_tools=True
        )
    streaming = joined(events)
    for one in (streaming, whole):
        assert [made[1:] for made in one] == [
            ("weather", '{"city":"Oslo"}'),
            ("weather", '{"city":"Rome"}'),
        ]
        assert one[0][0] == "c1"
        assert one[1][0].startswith("call_")
    assert texts(events) == "Let me see."
    assert (found.finish_reason, events[-1].delta.finish_reason) == ("TOOL_CALL", "TOOL_CALL")
    assert [part.type for part in found.message.content or ()] == ["thinking", "text"]
    content: Any = again.message.content
    assert content[0].text == "It rains."
    _, spoken, first, second = target.requests[2].messages
    assert spoken.content == (ThinkingPart("hm"), TextPart("Let me see."))
    assert spoken.tool_calls[0] == ToolCall("c1", "weather", '{"city":"Oslo"}')
    assert first == Message("tool", '{"sky":"rain"}', tool_call_id="c1")
    assert second == Message("tool", "sun", tool_call_id=whole[1][0])
    assert [tool.strict for one in target.requests for tool in one.tools] == [None, None, True]


async def test_a_tool_that_must_be_called() -> None:
    async with client(calls) as (api, target):
        await api.chat(model="a/m:1", messages=HELLO, tools=[WEATHER], tool_choice="REQUIRED")
        await api.chat(model="a/m:1", messages=HELLO, tools=[WEATHER], tool_choice="NONE")
    assert [one.tool_choice for one in target.requests] == ["required", "none"]
    schema = json.loads(bytes(target.requests[0].tools[0].parameters or b""))
    assert schema["properties"] == {"city": {"type": "string"}}


async def test_a_form_for_the_answer() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    wanted: Any = {"type": "json_object", "json_schema": schema}
    async with client(list(deltas_of('{"a": 1}'))) as (api, target):
        found = await api.chat(model="a/m:1", messages=HELLO, response_format=wanted)
    content: Any = found.message.content
    assert json.loads(content[0].text) == {"a": 1}
    asked = target.requests[0].response_format
    assert asked is not None
    assert json.loads(bytes(asked.schema or b"")) == schema


async def test_thoughts_and_documents_and_pictures() -> None:
    parts: Any = [
        {"type": "text", "text": "Look."},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
    ]
    async with client(calls) as (api, target):
        events = await streamed(
            api,
            messages=[{"role": "user", "content": parts}],
            tools=[WEATHER],
            documents=["It is red.", {"id": "d7", "data": {"title": "Sky", "size": 3}}],
            thinking={"type": "enabled", "token_budget": 64},
        )
    thoughts = [
        event.delta.message.content.thinking
        for event in events
        if event.type == "content-delta" and event.delta.message.content.thinking
    ]
    assert thoughts == ["hm"]
    asked = target.requests[0]
    assert asked.reasoning is not None
    assert asked.reasoning.budget == 64
    assert asked.messages[0].content == (
        TextPart("Document 0:\nIt is red.\n\nDocument d7:\ntitle: Sky\nsize: 3\n\n"),
        TextPart("Look."),
        ImagePart(ImageURL("data:image/png;base64,AAAA", "low")),
    )
    assert set(asked.extra) == {"citation_options"}


async def test_probabilities() -> None:
    def told(token: str, value: float) -> Raw:
        return Raw(json.dumps({"content": [{"token": token, "logprob": value}]}).encode())

    script = [
        Delta(role="assistant", text="a", logprobs=told("a", -0.5)),
        Delta(text="b", logprobs=told("b", -0.25)),
        Delta(finish="stop"),
    ]
    async with client(script) as (api, target):
        found = await api.chat(model="a/m:1", messages=HELLO, logprobs=True)
        events = await streamed(api, logprobs=True)
    assert target.requests[0].sampling.logprobs
    items = [event.logprobs for event in events if event.type == "content-delta"]
    for one in (found.logprobs or [], items):
        assert [(item.text, item.logprobs) for item in one] == [("a", [-0.5]), ("b", [-0.25])]


@pytest.mark.parametrize(
    ("delta", "reason"),
    [
        (Delta(finish="length"), "MAX_TOKENS"),
        (Delta(finish="stop", stopped_by="x"), "STOP_SEQUENCE"),
        (Delta(finish="content_filter"), "ERROR_TOXIC"),
        (Delta(finish="error"), "ERROR"),
    ],
)
async def test_reasons_to_finish(delta: Delta, reason: str) -> None:
    async with client([Delta(role="assistant", text="a"), delta]) as (api, _):
        found = await api.chat(model="a/m:1", messages=HELLO)
        events = await streamed(api)
    assert (found.finish_reason, events[-1].delta.finish_reason) == (reason, reason)


# ---------------------------------------------------------------- vectors and rankings


async def test_vectors() -> None:
    async with client() as (api, _):
        raw = await api.with_raw_response.embed(
            model="e",
            input_type="search_query",
            texts=["a", "b"],
            embedding_types=["float", "base64"],
            truncate="END",
        )
        inputs: Any = [{"content": [{"type": "text", "text": "a"}]}]
        again = await api.embed(model="e", input_type="search_query", inputs=inputs)
        with pytest.raises(cohere.BadRequestError, match="float or base64"):
            await api.embed(
                model="e", input_type="clustering", texts=["a"], embedding_types=["int8"]
            )
        with pytest.raises(cohere.BadRequestError, match="input_type"):
            await api.embed(model="e", input_type="nonsense", texts=["a"])
        with pytest.raises(cohere.BadRequestError, match="only texts"):
            await api.embed(model="e", input_type="image", images=["data:image/png;base64,AAAA"])
    found = raw.data
    floats = found.embeddings.float_ or []
    coded = found.embeddings.base64 or []
    assert len(floats) == len(coded) == 2
    size = len(floats[0])
    for vector, text in zip(floats, coded, strict=True):
        assert struct.unpack(f"<{size}f", base64.b64decode(text)) == pytest.approx(vector)
    assert again.embeddings.float_ == floats[:1]
    assert found.texts == ["a", "b"]
    assert found.response_type == "embeddings_by_type"
    assert found.meta is not None
    assert found.meta.billed_units is not None
    assert (found.meta.billed_units.input_tokens or 0) > 0


async def test_a_ranking() -> None:
    async with client() as (api, _):
        found = await api.rerank(
            model="r", query="the cat", documents=["rain", "the cat sat", "a cat"], top_n=2
        )
        spans: Any = {"mode": "enabled"}
        with pytest.raises(cohere.BadRequestError, match="spans"):
            await api.rerank(model="r", query="q", documents=["a"], relevant_spans=spans)
        with pytest.raises(cohere.BadRequestError, match="documents"):
            await api.rerank(model="r", query="q", documents=[])
    assert len(found.results) == 2
    assert found.results[0].relevance_score >= found.results[1].relevance_score
    assert found.id


async def test_models() -> None:
    async with client() as (api, _):
        listed = await api.models.list()
        one = await api.models.get(model="a/m:1")
        with pytest.raises(cohere.NotFoundError, match="nobody") as caught:
            await api.models.get(model="nobody")
    assert [model.name for model in listed.models] == ["a/m:1", "e", "r"]
    assert (one.name, one.endpoints) == ("a/m:1", ["chat"])
    assert set(caught.value.body) == {"message"}


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (RateLimited("slow down", retry_after=3), cohere.TooManyRequestsError),
        (ContextTooLong("too long"), cohere.BadRequestError),
        (UnknownModel("who?"), cohere.NotFoundError),
        (Overloaded("full"), cohere.ServiceUnavailableError),
        (UpstreamTimeout("late"), cohere.GatewayTimeoutError),
        (RunnerCrashed("gone"), ApiError),
    ],
)
async def test_failures_have_the_clients_own_classes(
    failure: RunnerError, kind: type[ApiError]
) -> None:
    async with client([failure]) as (api, _):
        with pytest.raises(kind) as caught:
            await api.chat(model="a/m:1", messages=HELLO)
        with pytest.raises(kind) as before:
            await streamed(api)
    for one in (caught, before):
        assert one.value.status_code == failure.status
        assert one.value.body == {"message": failure.message}


async def test_a_wrong_key_and_a_wrong_body_and_a_wrong_path() -> None:
    async with client(key="k" * 40) as (api, _):
        with pytest.raises(cohere.UnauthorizedError, match="API key"):
            await api.chat(model="a/m:1", messages=HELLO)
    async with client() as (api, _):
        with pytest.raises(cohere.BadRequestError, match="temperature"):
            await api.chat(model="a/m:1", messages=HELLO, temperature=9)
        with pytest.raises(cohere.NotFoundError, match="nobody"):
            await api.chat(model="nobody", messages=HELLO)
        document: Any = {"document": {"type": "url", "url": "https://x/y.pdf"}}
        with pytest.raises(cohere.NotFoundError) as caught:
            await api.parse(model="p", document=document, output_format="markdown")
    assert set(caught.value.body) == {"message"}


async def test_a_stream_that_breaks_says_so() -> None:
    broken = [Delta(role="assistant", text="Good "), StreamBroken("the upstream was cut")]
    async with client(broken) as (api, _):
        events = await streamed(api)
        with pytest.raises(ApiError, match="cut"):
            await api.chat(model="a/m:1", messages=HELLO)
    assert texts(events) == "Good "
    assert events[-1].type == "message-end"
    end = events[-1].delta
    assert end.finish_reason == "ERROR"
    assert "cut" in (end.error or "")


class Watched:
    """A target that says when its answer was left."""

    def __init__(self, target: FakeTarget) -> None:
        self.target = target
        self.name = target.name
        self.left = asyncio.Event()

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        try:
            async with self.target.open(request, call) as deltas:
                yield deltas
        finally:
            self.left.set()


async def test_a_client_that_leaves_stops_the_work() -> None:
    script: list[Delta | Gate] = [Delta(role="assistant", text="a"), Gate(), Delta(finish="stop")]
    watched = Watched(FakeTarget("m", script))
    async with (
        serve(FakeGateway({"m": watched}), Server(port=0, drain=0)) as url,
        cohere.AsyncClientV2(api_key=KEY, base_url=url, max_retries=0) as api,
    ):
        stream: Any = api.chat_stream(model="m", messages=HELLO)
        async for event in stream:
            if event.type == "content-delta":
                break
        await stream.aclose()
        async with asyncio.timeout(5):
            await watched.left.wait()
    assert watched.target.cancelled == 1
