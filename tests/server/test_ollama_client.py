"""The `ollama` package against a real server: what its users do and what failures look like."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import ollama
import pytest
from ollama import AsyncClient
from pydantic import BaseModel

from llm_runner_router import errors
from llm_runner_router.config import Server
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeEmbedder, FakeTarget, deltas_of
from llm_runner_router.types import (
    Call,
    Delta,
    ImagePart,
    Message,
    Reasoning,
    Request,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)

HELLO = [{"role": "user", "content": "hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells it.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 60


def talks(request: Request, call: Call) -> list[Delta]:
    return list(deltas_of("Good morning.", usage=Usage(7, 3)))


def calls(request: Request, call: Call) -> list[Delta]:
    assert request.tools[0].name == "weather"
    return [
        Delta(role="assistant", reasoning="They want weather."),
        Delta(text="Let me see."),
        Delta(tool_calls=(ToolCallDelta(0, "c1", "weather", '{"city":'),)),
        Delta(tool_calls=(ToolCallDelta(1, "c2", "weather"),)),
        Delta(tool_calls=(ToolCallDelta(0, arguments='"Oslo"}'),)),
        Delta(finish="tool_calls", usage=Usage(9, 9)),
    ]


@asynccontextmanager
async def client(
    script: Any = talks, key: str = KEY
) -> AsyncIterator[tuple[AsyncClient, FakeTarget, FakeGateway]]:
    target = FakeTarget("m", script)
    served = FakeGateway({"m": target}, {"e": FakeEmbedder("e")})
    async with serve(served, Server(port=0, drain=0)) as url:
        api = AsyncClient(host=url, headers={"Authorization": f"Bearer {key}"})
        try:
            yield api, target, served
        finally:
            await api._client.aclose()


async def test_a_chat_with_options() -> None:
    async with client() as (api, target, gateway):
        answer = await api.chat(
            "m:latest",
            HELLO,
            options={
                "temperature": 0.5,
                "num_predict": 9,
                "stop": ["x"],
                "min_p": 0.1,
                "num_ctx": 9,
            },
            think=True,
            keep_alive="1h30m",
        )
    assert answer.message.content == "Good morning."
    assert (answer.model, answer.done, answer.done_reason) == ("m:latest", True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (7, 3)
    assert answer.total_duration is not None
    assert answer.total_duration > 0
    asked = target.requests[0]
    assert asked.messages == (Message("user", "hello"),)
    draw = asked.sampling
    assert (draw.temperature, draw.max_tokens, draw.stop) == (0.5, 9, ("x",))
    assert set(asked.extra) == {"min_p", "num_ctx"}
    assert asked.reasoning == Reasoning(shown=True)
    assert gateway.asked == ["keep:m:5400.0"]


async def test_a_stream_with_thoughts_and_calls() -> None:
    async with client(calls) as (api, _, _):
        stream = await api.chat("m", HELLO, tools=[WEATHER], stream=True)
        parts = [part async for part in stream]
        whole = await api.chat("m", HELLO, tools=[WEATHER])
    assert [part.done for part in parts] == [False, False, False, True]
    assert parts[0].message.thinking == whole.message.thinking == "They want weather."
    assert parts[1].message.content == whole.message.content == "Let me see."
    for message in (parts[2].message, whole.message):
        found = [(c.function.name, dict(c.function.arguments)) for c in message.tool_calls or ()]
        assert found == [("weather", {"city": "Oslo"}), ("weather", {})]
    assert parts[3].eval_count == 9


async def test_a_tools_answer_belongs_to_its_call() -> None:
    asked: list[dict[str, Any]] = [
        *HELLO,
        {
            "role": "assistant",
            "content": "",
            "thinking": "Hm.",
            "tool_calls": [
                {"function": {"name": "a", "arguments": {}}},
                {"function": {"name": "b", "arguments": {"x": 1}}},
            ],
        },
        {"role": "tool", "tool_name": "b", "content": "two"},
        {"role": "tool", "content": "one"},
    ]
    async with client() as (api, target, _):
        await api.chat("m", asked)
    said = target.requests[0].messages
    assert said[1].content == (ThinkingPart("Hm."), TextPart(""))
    assert said[1].tool_calls == (
        ToolCall("call_1_0", "a", "{}"),
        ToolCall("call_1_1", "b", '{"x":1}'),
    )
    assert [m.tool_call_id for m in said[2:]] == ["call_1_1", "call_1_0"]


async def test_a_schema_and_a_picture() -> None:
    class Person(BaseModel):
        name: str

    def answers(request: Request, call: Call) -> list[Delta]:
        assert request.response_format is not None
        assert json.loads(bytes(request.response_format.schema or b""))["required"] == ["name"]
        return list(deltas_of('{"name": "Ada"}', usage=Usage(1, 1)))

    async with client(answers) as (api, target, _):
        answer = await api.chat(
            "m",
            [{"role": "user", "content": "who?", "images": [PNG]}],
            format=Person.model_json_schema(),
        )
    assert Person.model_validate_json(answer.message.content or "") == Person(name="Ada")
    content = target.requests[0].messages[0].content
    assert isinstance(content, tuple)
    picture = content[1]
    assert isinstance(picture, ImagePart)
    data = base64.b64encode(PNG).decode()
    assert picture.image_url.url == f"data:image/png;base64,{data}"


async def test_generate_plain_raw_and_filling_in() -> None:
    async with client() as (api, target, _):
        answer = await api.generate("m", "hello", system="Be kind.")
        await api.generate("m", "once", raw=True)
        await api.generate("m", "def f(", suffix="return 1")
        stream = await api.generate("m", "hello", stream=True)
        text = "".join([part.response or "" async for part in stream])
    assert answer.response == text == "Good morning."
    chat, raw, filled, _ = target.requests
    assert chat.messages == (Message("system", "Be kind."), Message("user", "hello"))
    assert (raw.prompt, raw.suffix, raw.messages) == ("once", None, ())
    assert (filled.prompt, filled.suffix) == ("def f(", "return 1")


async def test_loading_and_unloading_without_a_question() -> None:
    async with client() as (api, target, gateway):
        first = await api.chat("m", [], keep_alive=-1)
        second = await api.generate("m", keep_alive=0)
    assert (first.done_reason, second.done_reason) == ("load", "unload")
    assert gateway.asked == [f"keep:m:{inf}", "load:m", "stop:m"]
    assert not target.requests


async def test_vectors() -> None:
    async with client() as (api, _, _):
        two = await api.embed("e", ["a", "b"])
        one = await api.embeddings("e", "a")
    assert len(two.embeddings) == 2
    assert list(one.embedding) == list(two.embeddings[0])


async def test_models_are_listed_and_shown() -> None:
    async with client() as (api, _, _):
        listed = await api.list()
        shown = await api.show("m")
        loaded = await api.ps()
    assert [model.model for model in listed.models] == ["m", "e"]
    assert shown.capabilities == ["completion"]
    assert [model.model for model in loaded.models] == ["m"]


async def test_pull_copy_and_delete() -> None:
    async with client() as (api, _, gateway):
        stream = await api.pull("qwen3:4b", stream=True)
        parts = [part async for part in stream]
        whole = await api.pull("hf.co/org/repo:Q4_K_M")
        await api.copy("qwen3:4b", "mine")
        await api.create("other", from_="mine")
        gateway.targets["mine"] = FakeTarget("mine")
        await api.delete("mine")
        with pytest.raises(ollama.ResponseError, match="store has no model 'mine'"):
            await api.delete("mine")
    shelf = gateway.admin.shelf
    assert shelf.pulls == ["ollama:qwen3:4b", "hf.co/org/repo:Q4_K_M"]
    assert (parts[0].status, parts[-1].status) == ("pulling manifest", "success")
    done = [(part.digest, part.completed, part.total) for part in parts if part.digest]
    assert done[-2:] == [("sha256:aa", 10, 10), ("sha256:bb", 10, 10)]
    assert whole.status == "success"
    assert shelf.names == {"ollama:qwen3:4b", "hf.co/org/repo:Q4_K_M", "other"}


async def test_a_pull_takes_a_place_like_any_request() -> None:
    served = FakeGateway({"m": FakeTarget("m", [Delta(text="a"), asyncio.Event()])})
    async with serve(served, Server(port=0, drain=0, max_requests=1)) as url:
        api = AsyncClient(host=url, headers={"Authorization": f"Bearer {KEY}"})
        try:
            stream = await api.chat("m", HELLO, stream=True)
            assert await anext(stream)
            with pytest.raises(ollama.ResponseError) as caught:
                await api.pull("qwen3:4b")
        finally:
            await api._client.aclose()
    assert caught.value.status_code == 503
    assert not served.shelf.pulls


async def test_a_pull_that_breaks_says_so() -> None:
    async with client() as (api, _, _):
        stream = await api.pull("broken", stream=True)
        with pytest.raises(ollama.ResponseError, match="is not there"):
            _ = [part async for part in stream]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (errors.RateLimited("slow down", retry_after=3), 429),
        (errors.ContextTooLong("too long"), 400),
        (errors.UpstreamError("broken"), 502),
    ],
)
async def test_failures_have_their_status(failure: errors.RunnerError, status: int) -> None:
    async with client([failure]) as (api, _, _):
        with pytest.raises(ollama.ResponseError) as caught:
            await api.chat("m", HELLO)
    assert caught.value.status_code == status
    assert failure.message in caught.value.error


async def test_a_stream_that_breaks_is_no_answer() -> None:
    script = [Delta(role="assistant", text="Good "), errors.StreamBroken("gone")]
    async with client(script) as (api, _, _):
        stream = await api.chat("m", HELLO, stream=True)
        with pytest.raises(ollama.ResponseError, match="gone"):
            _ = [part async for part in stream]


async def test_what_is_wrong_is_told() -> None:
    async with client() as (api, _, _):
        for what, ask in {
            "no model": api.chat("nobody", HELLO),
            "messages\\[0\\].role": api.chat("m", [{"role": "robot", "content": "x"}]),
            "options.stop": api.chat("m", HELLO, options={"stop": 3}),
            "keep_alive": api.chat("m", HELLO, keep_alive="soon"),
            "template": api.generate("m", "x", template="{{x}}"),
            "not published": api.push("m"),
            "system": api.create("n", from_="m", system="Be kind."),
            "no picture": api.generate("m", "x", images=[b"what is this, really, if not one"]),
        }.items():
            with pytest.raises(ollama.ResponseError, match=what):
                await ask
    async with client(key="wrong") as (api, _, _):
        with pytest.raises(ollama.ResponseError) as caught:
            await api.chat("m", HELLO)
    assert caught.value.status_code == 401


async def test_the_greeting_and_the_version() -> None:
    served = FakeGateway({"m": FakeTarget("m")})
    key = [("authorization", f"Bearer {KEY}")]
    async with HttpClient() as http, serve(served, Server(port=0, drain=0)) as url:
        async with http.stream("GET", f"{url}/", headers=key) as response:
            assert (response.status, await response.read(99)) == (200, b"Ollama is running")
        async with http.stream("GET", f"{url}/api/version", headers=key) as response:
            assert json.loads(await response.read(99))["version"].count(".") == 2
        async with http.stream("GET", f"{url}/api/version") as response:
            assert response.status == 401
            assert (await response.read(999)).startswith(b'{"error":"')
