"""The `anthropic` package against a real server: what its users do and what failures look like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import MessageParam, ToolParam

from llm_runner_router import errors
from llm_runner_router.config import Server
from llm_runner_router.providers import hosts
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeTarget, deltas_of
from llm_runner_router.types import Call, Delta, Price, Request, ToolCallDelta, Usage

HELLO: list[MessageParam] = [{"role": "user", "content": "hello"}]
WEATHER: list[ToolParam] = [
    {
        "name": "weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


def talks(request: Request, call: Call) -> list[Delta]:
    return list(deltas_of("Good morning.", usage=Usage(7, 3, cached_tokens=2)))


def calls(request: Request, call: Call) -> list[Delta]:
    assert request.tools[0].name == "weather"
    return [
        Delta(role="assistant", text="Let me see."),
        Delta(tool_calls=(ToolCallDelta(0, "c1", "weather", '{"city":'),)),
        Delta(tool_calls=(ToolCallDelta(1, "c2", "weather", '{"city":"Rome"}'),)),
        Delta(tool_calls=(ToolCallDelta(0, arguments='"Oslo"}'),)),
        Delta(finish="tool_calls", usage=Usage(9, 9)),
    ]


@asynccontextmanager
async def client(
    script: Any = talks, key: str = KEY
) -> AsyncIterator[tuple[AsyncAnthropic, FakeTarget]]:
    target = FakeTarget("m", script, price=Price(1.0, 2.0))
    served = FakeGateway({"m": target})
    async with (
        serve(served, Server(port=0, drain=0)) as url,
        AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as api,
    ):
        yield api, target


async def test_a_message_and_its_headers() -> None:
    async with client() as (api, target):
        raw = await api.messages.with_raw_response.create(
            model="m", max_tokens=9, system="Be kind.", messages=HELLO
        )
    message = await raw.parse()
    assert [block.text for block in message.content if block.type == "text"] == ["Good morning."]
    assert (message.stop_reason, message.usage.input_tokens) == ("end_turn", 5)
    assert message.usage.cache_read_input_tokens == 2
    assert raw.headers["x-llmrr-fidelity"] == "honoured"
    assert [m.role for m in target.requests[0].messages] == ["system", "user"]


async def test_a_stream_with_calls_that_take_turns() -> None:
    async with client(calls) as (api, target):
        stream = api.messages.stream(model="m", max_tokens=9, messages=HELLO, tools=WEATHER)
        async with stream as events:
            text = "".join([piece async for piece in events.text_stream])
            message = await events.get_final_message()
    assert text == "Let me see."
    uses = [block for block in message.content if block.type == "tool_use"]
    assert [(use.id, use.input) for use in uses] == [
        ("c1", {"city": "Oslo"}),
        ("c2", {"city": "Rome"}),
    ]
    assert (message.stop_reason, message.usage.output_tokens) == ("tool_use", 9)
    assert target.running == 0


async def test_models_and_tokens() -> None:
    async with client() as (api, _):
        listed = await api.models.list()
        one = await api.models.retrieve("m")
        counted = await api.messages.count_tokens(model="m", messages=HELLO)
    assert [model.id for model in listed.data] == ["m"]
    assert one.type == "model"
    assert counted.input_tokens > 0


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (errors.RateLimited("slow down", retry_after=3), anthropic.RateLimitError),
        (errors.ContextTooLong("too long"), anthropic.BadRequestError),
        (errors.UnknownModel("who?"), anthropic.NotFoundError),
        (errors.RunnerCrashed("gone"), anthropic.InternalServerError),
    ],
)
async def test_failures_have_the_clients_own_classes(
    failure: errors.RunnerError, expected: type[anthropic.APIStatusError]
) -> None:
    async with client([failure]) as (api, _):
        with pytest.raises(expected) as caught:
            await api.messages.create(model="m", max_tokens=9, messages=HELLO)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "error"


async def test_a_wrong_key_and_a_wrong_body() -> None:
    async with client(key="k" * 40) as (api, _):
        with pytest.raises(anthropic.AuthenticationError, match="API key"):
            await api.messages.create(model="m", max_tokens=9, messages=HELLO)
    async with client() as (api, _):
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            await api.messages.create(model="m", max_tokens=0, messages=HELLO)


async def test_a_stream_that_breaks_says_so() -> None:
    broken = [Delta(role="assistant", text="Good "), errors.StreamBroken("the upstream was cut")]
    async with client(broken) as (api, _):
        with pytest.raises(anthropic.APIStatusError, match="cut"):
            async with api.messages.stream(model="m", max_tokens=9, messages=HELLO) as events:
                await events.get_final_message()


async def test_a_schema_nested_beyond_reason_is_the_clients_mistake() -> None:
    """Decoded in C it passes; whoever walks it in Python must not fail as if the server had."""
    levels = 400
    schema = '{"type":"object","properties":{"a":' * levels + "{}" + "}}" * levels
    wanted = f'{{"type":"json_schema","json_schema":{{"name":"a","schema":{schema}}}}}'
    body = (
        f'{{"model":"m","messages":[{{"role":"user","content":"hi"}}],"response_format":{wanted}}}'
    )
    async with HttpClient() as client:
        remote = RemoteTarget(
            name="m", model="claude-x", client=client, host=hosts.find("anthropic")
        )
        async with serve(FakeGateway({"m": remote}), Server(port=0, drain=0)) as url:
            headers = [("authorization", f"Bearer {KEY}"), ("content-type", "application/json")]
            async with client.stream(
                "POST", f"{url}/v1/chat/completions", headers=headers, body=body.encode()
            ) as response:
                told = await response.read(10_000)
    assert response.status == 400, told
    assert b"nested too deeply" in told
