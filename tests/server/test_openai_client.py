"""The `openai` package against a real server: what its users do and what failures look like."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam

from llm_runner_router import errors
from llm_runner_router.config import Server
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeEmbedder, FakeTarget, Gate, deltas_of
from llm_runner_router.types import Call, Decision, Delta, Price, Request, ToolCallDelta, Usage

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
WEATHER: list[ChatCompletionToolUnionParam] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def choices(request: Request, call: Call) -> list[Delta]:
    deltas: list[Delta] = []
    for index in range(request.sampling.n):
        deltas += deltas_of(f"answer {index}", index=index, usage=Usage(4, 2))
    return deltas


def calls(request: Request, call: Call) -> list[Delta]:
    assert request.tools[0].name == "weather"
    return [
        Delta(role="assistant", tool_calls=(ToolCallDelta(0, "c1", "weather", '{"city":'),)),
        Delta(tool_calls=(ToolCallDelta(0, arguments='"Oslo"}'),)),
        Delta(tool_calls=(ToolCallDelta(1, "c2", "weather", '{"city":"Rome"}'),)),
        Delta(finish="tool_calls", usage=Usage(9, 9)),
    ]


@asynccontextmanager
async def client(
    script: Any = choices, **gateway: Any
) -> AsyncIterator[tuple[AsyncOpenAI, FakeTarget]]:
    target = FakeTarget("m", script, price=Price(1.0, 2.0))
    served = FakeGateway({"m": target}, {"e": FakeEmbedder("e")}, **gateway)
    async with (
        serve(served, Server(port=0, drain=0)) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as openai_client,
    ):
        yield openai_client, target


async def test_a_plain_answer_with_n_choices() -> None:
    async with client() as (api, target):
        answer = await api.chat.completions.create(model="m", messages=HELLO, n=2, seed=7)
    assert [choice.message.content for choice in answer.choices] == ["answer 0", "answer 1"]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 6
    assert (target.requests[0].sampling.n, target.requests[0].sampling.seed) == (2, 7)
    assert (target.running, target.calls[0].caller) == (0, "test")


async def test_a_stream_with_usage() -> None:
    async with client() as (api, _):
        stream = await api.chat.completions.create(
            model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "answer 0"
    assert len({chunk.id for chunk in chunks}) == 1
    assert (chunks[-1].choices, chunks[-1].usage and chunks[-1].usage.prompt_tokens) == ([], 4)
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_the_streaming_helper_adds_tool_calls_up() -> None:
    async with client(calls) as (api, target):
        async with api.chat.completions.stream(
            model="m", messages=HELLO, tools=WEATHER, tool_choice="auto"
        ) as stream:
            answer = await stream.get_final_completion()
        whole = await api.chat.completions.create(model="m", messages=HELLO, tools=WEATHER)
    for completion in (answer, whole):
        found = completion.choices[0].message.tool_calls
        assert found is not None
        cities = [json.loads(c.function.arguments)["city"] for c in found if c.type == "function"]
        assert cities == ["Oslo", "Rome"]
        assert completion.choices[0].finish_reason == "tool_calls"
    assert target.requests[0].tool_choice == "auto"


async def test_a_schema_reaches_the_target() -> None:
    async with client('{"a": 1}' and deltas_of('{"a": 1}')) as (api, target):
        answer = await api.chat.completions.create(
            model="m",
            messages=HELLO,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
            },
        )
    assert json.loads(answer.choices[0].message.content or "") == {"a": 1}
    wanted = target.requests[0].response_format
    assert wanted is not None
    assert (wanted.type, wanted.name, wanted.strict) == ("json_schema", "n", True)


async def test_legacy_completions_with_several_prompts() -> None:
    async with client(lambda r, c: deltas_of(f"{r.prompt}!")) as (api, _):
        answer = await api.completions.create(model="m", prompt=["a", "b", "c"])
        assert [choice.text for choice in answer.choices] == ["a!", "b!", "c!"]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 3
        stream = await api.completions.create(model="m", prompt=["a", "b"], stream=True)
        texts = ["", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == ["a!", "b!"]


async def test_embeddings_in_both_encodings() -> None:
    async with client() as (api, _):
        packed = await api.embeddings.create(model="e", input=["x", "y"])  # base64 by default
        plain = await api.embeddings.create(model="e", input=["x", "y"], encoding_format="float")
    assert [d.index for d in plain.data] == [0, 1]
    for a, b in zip(packed.data, plain.data, strict=True):
        assert a.embedding == pytest.approx(b.embedding)


async def test_models() -> None:
    async with client() as (api, _):
        assert [model.id async for model in api.models.list()] == ["m", "e"]
        assert (await api.models.retrieve("m")).id == "m"
        with pytest.raises(openai.NotFoundError, match="there is no model 'mm'"):
            await api.models.retrieve("mm")


async def test_a_model_whose_name_has_a_slash() -> None:
    target = FakeTarget("org/model")
    async with serve(FakeGateway({"org/model": target}), Server(port=0)) as url:
        async with AsyncOpenAI(base_url=url, api_key=KEY) as api:  # without /v1, too
            assert (await api.models.retrieve("org/model")).id == "org/model"


async def test_headers_say_who_answered_and_why() -> None:
    decision = Decision("auto", "m", "cheapest für maths\r\nx-evil: 1", task="arithmetic")
    async with client(decisions=[decision], notes={"cache": "miss"}) as (api, _):
        raw = await api.chat.completions.with_raw_response.create(
            model="m", messages=HELLO, extra_headers={"x-request-id": "abc-1"}
        )
        streamed = await api.chat.completions.with_raw_response.create(
            model="m", messages=HELLO, stream=True, extra_headers={"x-request-id": "b d;"}
        )
        async for _ in streamed.parse():
            pass
    for response in (raw, streamed):
        assert response.headers["x-llmrr-target"] == "m"
        assert response.headers["x-llmrr-model"] == "m"
        assert response.headers["x-llmrr-strategy"] == "auto"
        assert response.headers["x-llmrr-task"] == "arithmetic"
        assert response.headers["x-llmrr-reason"] == "cheapest f?r maths?x-evil: 1"
        assert response.headers["x-llmrr-attempts"] == "1"
        assert response.headers["x-llmrr-cache"] == "miss"
        assert "x-evil" not in response.headers
    assert raw.headers["x-request-id"] == "abc-1"
    assert raw.headers["x-llmrr-cost"] == "0.000008"
    assert float(raw.headers["x-llmrr-tokens-per-second"]) > 0
    assert streamed.headers["x-request-id"].startswith("req-")
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert streamed.headers["cache-control"] == "no-cache"
    assert streamed.headers["x-accel-buffering"] == "no"


async def test_what_a_client_may_say_in_headers() -> None:
    async with client() as (api, target):
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await api.chat.completions.create(
            model="m",
            messages=HELLO,
            user="u",
            extra_headers={
                "x-session-id": "s1",
                "x-llmrr-timeout": "2.5",
                "x-llmrr-fallbacks": "a, b,",
                "traceparent": trace,
            },
        )
        await api.chat.completions.create(
            model="m", messages=HELLO, user="u", extra_body={"fallbacks": ["z"]}
        )
        with pytest.raises(openai.BadRequestError, match="x-llmrr-timeout"):
            await api.chat.completions.create(
                model="m", messages=HELLO, extra_headers={"x-llmrr-timeout": "soon"}
            )
    first, second = target.calls
    assert (first.session, first.traceparent) == ("s1", trace)
    assert first.deadline is not None
    assert first.deadline - first.started == pytest.approx(2.5)
    assert second.session == "u"
    assert [r.fallbacks for r in target.requests] == [("a", "b"), ("z",)]


@pytest.mark.parametrize(
    ("raised", "seen", "status"),
    [
        (errors.BadRequest("x", param="messages[0]"), openai.BadRequestError, 400),
        (errors.ContextTooLong("x"), openai.BadRequestError, 400),
        (errors.Forbidden("x"), openai.PermissionDeniedError, 403),
        (errors.UnknownModel("x"), openai.NotFoundError, 404),
        (errors.RateLimited("x", retry_after=7.2), openai.RateLimitError, 429),
        (errors.LoadFailed("x"), openai.InternalServerError, 500),
        (errors.ConnectFailed("x", target="m"), openai.InternalServerError, 502),
        (errors.Overloaded("x", retry_after=3), openai.InternalServerError, 503),
        (errors.DeadlineExceeded("x"), openai.InternalServerError, 504),
        (KeyError("the secret inside"), openai.InternalServerError, 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_token_are_statuses(
    raised: Exception, seen: type[openai.APIStatusError], status: int, stream: bool
) -> None:
    async with client([raised]) as (api, target):
        with pytest.raises(seen) as caught:
            await api.chat.completions.create(model="m", messages=HELLO, stream=stream)
    error = caught.value
    assert error.status_code == status
    assert "secret" not in error.message
    if isinstance(raised, errors.RunnerError):
        assert error.code == raised.code
        assert error.param == raised.param
        assert error.type == raised.type
        if raised.retry_after:
            assert int(error.response.headers["retry-after"]) >= raised.retry_after
        if raised.target:
            assert error.response.headers["x-llmrr-target"] == raised.target
    assert target.running == 0


async def test_a_wrong_key_and_bad_fields() -> None:
    async with client() as (api, target):
        with pytest.raises(openai.AuthenticationError):
            await api.with_options(api_key="wrong").chat.completions.create(
                model="m", messages=HELLO
            )
        with pytest.raises(openai.BadRequestError) as caught:
            await api.chat.completions.create(model="m", messages=HELLO, temperature=9)
        assert caught.value.param == "temperature"
        with pytest.raises(openai.NotFoundError) as missing:
            await api.chat.completions.create(model="mm", messages=HELLO)
        assert missing.value.code == "model_not_found"
        assert "did you mean 'm'" in missing.value.message
    assert target.opened == 0


@pytest.mark.parametrize("raised", [errors.StreamBroken("gone"), KeyError("the secret inside")])
async def test_an_error_in_the_middle_of_a_stream_reaches_the_client(raised: Exception) -> None:
    async with client([Delta(text="half"), raised]) as (api, target):
        stream = await api.chat.completions.create(model="m", messages=HELLO, stream=True)
        seen = [(await anext(stream)).choices[0].delta.content]
        with pytest.raises(openai.APIError) as caught:
            await anext(stream)
    assert seen == ["half"]
    assert "secret" not in caught.value.message
    assert target.running == 0


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


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("silent", ["entering", "before the first token", "in the middle"])
async def test_a_client_that_leaves_frees_its_place(silent: str, stream: bool) -> None:
    gate = Gate()
    script: list[Delta | Gate] = [Delta(text="x"), gate] if silent == "in the middle" else [gate]
    entering = silent == "entering"
    target = FakeTarget("m", [] if entering else script, enter=[gate] if entering else ())
    watched = Watched(target)
    async with serve(FakeGateway({"m": watched}), Server(port=0, drain=0)) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as api:
            asking = asyncio.create_task(_ask_and_read(api, stream))
            await gate.reached.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            async with asyncio.timeout(5):  # it takes a few turns of the loop; never the gate
                await watched.left.wait()
    assert (target.running, target.cancelled) == (0, 1)


async def _ask_and_read(api: AsyncOpenAI, stream: bool) -> None:
    if not stream:
        await api.chat.completions.create(model="m", messages=HELLO)
        return
    async with await api.chat.completions.create(model="m", messages=HELLO, stream=True) as chunks:
        async for _ in chunks:
            pass


def test_the_blocking_client() -> None:
    """The server lives in a thread of its own, as it would in another process."""
    up = threading.Event()
    state: dict[str, Any] = {}

    async def host() -> None:
        state["loop"], state["stop"] = asyncio.get_running_loop(), asyncio.Event()
        async with serve(FakeGateway({"m": FakeTarget("m", choices)}), Server(port=0)) as url:
            state["url"] = url
            up.set()
            await state["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(host()))
    thread.start()
    try:
        assert up.wait(10)
        with OpenAI(base_url=state["url"] + "/v1", api_key=KEY, max_retries=0) as api:
            answer = api.chat.completions.create(model="m", messages=HELLO)
            assert answer.choices[0].message.content == "answer 0"
            stream = api.chat.completions.create(model="m", messages=HELLO, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            assert text == "answer 0"
    finally:
        state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join(10)
    assert not thread.is_alive()
