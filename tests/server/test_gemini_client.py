"""The `google-genai` package against a real server: what its users do, what failures look like."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.genai import Client, errors, types
from google.genai.client import AsyncClient

from llm_runner_router.config import Server
from llm_runner_router.errors import (
    ContextTooLong,
    RateLimited,
    RunnerCrashed,
    RunnerError,
    StreamBroken,
    UnknownModel,
)
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeEmbedder, FakeTarget, Gate, deltas_of
from llm_runner_router.types import (
    Call,
    Delta,
    ImagePart,
    ImageURL,
    Price,
    Request,
    TextPart,
    ThinkingPart,
    ToolCallDelta,
    Usage,
)

SIGNATURE = "google:" + base64.b64encode(b"\xfb\xff a thought").decode()


def talks(request: Request, call: Call) -> list[Delta]:
    return list(deltas_of("Good morning. 日本", usage=Usage(7, 3, cached_tokens=2)))


def calls(request: Request, call: Call) -> list[Delta]:
    assert request.tools[0].name == "weather"
    if request.messages[-1].role == "tool":
        return list(deltas_of("It rains."))
    return [
        Delta(role="assistant", text="Let me see."),
        Delta(tool_calls=(ToolCallDelta(0, "c1", "weather", '{"city":', SIGNATURE),)),
        Delta(tool_calls=(ToolCallDelta(1, None, "weather", '{"city":"Rome"}'),)),
        Delta(tool_calls=(ToolCallDelta(0, arguments='"Oslo"}'),)),
        Delta(finish="tool_calls", usage=Usage(9, 9)),
    ]


def thinks(request: Request, call: Call) -> list[Delta]:
    return [
        Delta(role="assistant", reasoning="h"),
        Delta(reasoning="m"),
        Delta(signature="c2ln"),
        *deltas_of("Yes.", usage=Usage(1, 5, reasoning_tokens=3)),
    ]


@asynccontextmanager
async def client(
    script: Any = talks, key: str = KEY, **options: Any
) -> AsyncIterator[tuple[AsyncClient, FakeTarget]]:
    target = FakeTarget("a/m:1", script, price=Price(1.0, 2.0))
    served = FakeGateway({"a/m:1": target}, {"e": FakeEmbedder("e")})
    async with serve(served, Server(port=0, drain=0, **options)) as url:
        made = Client(api_key=key, http_options=types.HttpOptions(base_url=url))
        async with made.aio as api:
            yield api, target


def weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


# ---------------------------------------------------------------- answers


async def test_an_answer_and_its_headers() -> None:
    config = types.GenerateContentConfig(
        system_instruction="Be kind.", temperature=0.5, top_k=4, max_output_tokens=9
    )
    async with client() as (api, target):
        found = await api.models.generate_content(model="a/m:1", contents="hello", config=config)
    assert found.text == "Good morning. 日本"
    assert found.candidates
    assert found.candidates[0].finish_reason == types.FinishReason.STOP
    usage = found.usage_metadata
    assert usage is not None
    assert (usage.prompt_token_count, usage.candidates_token_count) == (7, 3)
    assert (usage.cached_content_token_count, usage.total_token_count) == (2, 10)
    assert found.sdk_http_response is not None
    headers = found.sdk_http_response.headers or {}
    assert headers["x-llmrr-fidelity"] == "honoured"
    asked = target.requests[0]
    assert [m.role for m in asked.messages] == ["system", "user"]
    assert (asked.model, asked.sampling.top_k, asked.sampling.max_tokens) == ("a/m:1", 4, 9)
    assert not asked.stream


async def test_a_stream() -> None:
    async with client() as (api, target):
        stream = await api.models.generate_content_stream(model="a/m:1", contents="hello")
        found = [chunk async for chunk in stream]
    assert "".join(chunk.text or "" for chunk in found) == "Good morning. 日本"
    assert len(found) > 2
    assert found[-1].usage_metadata is not None
    assert found[-1].usage_metadata.total_token_count == 10
    assert target.requests[0].stream
    assert target.running == 0


async def test_silence_between_chunks_is_no_chunk() -> None:
    gate = Gate()
    script = [Delta(role="assistant", text="a"), gate, Delta(text="b"), Delta(finish="stop")]
    async with client(script, keep_alive_comment=0.01) as (api, _):
        stream = await api.models.generate_content_stream(model="a/m:1", contents="hello")
        first = await anext(stream)
        # The server counts silence from when its first chunk was out.
        asyncio.get_running_loop().call_later(0.05, gate.open)
        rest = [chunk async for chunk in stream]
    assert (first.text, [chunk.text for chunk in rest]) == ("a", ["b", ""])


async def test_calls_answers_and_what_was_signed() -> None:
    tool = types.Tool(
        function_declarations=[
            types.FunctionDeclaration(
                name="weather",
                description="The weather in a city.",
                parameters=types.Schema(
                    type=types.Type.OBJECT,
                    properties={"city": types.Schema(type=types.Type.STRING, nullable=True)},
                ),
            )
        ]
    )
    config = types.GenerateContentConfig(tools=[tool])
    async with client(calls) as (api, target):
        found = await api.models.generate_content(model="a/m:1", contents="hi", config=config)
        made = found.function_calls or []
        assert [(call.name, call.args) for call in made] == [
            ("weather", {"city": "Oslo"}),
            ("weather", {"city": "Rome"}),
        ]
        assert found.candidates
        turn = found.candidates[0].content
        assert turn is not None
        answers = [
            types.Part(
                function_response=types.FunctionResponse(
                    id=call.id, name=call.name, response={"output": "rain"}
                )
            )
            for call in made
        ]
        again = await api.models.generate_content(
            model="a/m:1",
            contents=[types.UserContent("hi"), turn, types.Content(role="user", parts=answers)],
            config=config,
        )
    assert again.text == "It rains."
    schema = json.loads(bytes(target.requests[0].tools[0].parameters or b""))
    assert schema["properties"] == {"city": {"type": ["string", "null"]}}
    _, turn_back, first, second = target.requests[1].messages
    # The client's own encoder of base64 writes the other alphabet.
    given = (turn_back.tool_calls[0].signature or "").removeprefix("google:")
    assert base64.urlsafe_b64decode(given) == b"\xfb\xff a thought"
    assert turn_back.tool_calls[1].signature is None
    assert (first.tool_call_id, first.content) == ("c1", "rain")
    assert second.tool_call_id == turn_back.tool_calls[1].id


async def test_a_chat_whose_functions_the_client_runs_itself() -> None:
    config = types.GenerateContentConfig(tools=[weather])
    async with client(calls) as (api, target):
        chat = api.chats.create(model="a/m:1", config=config)
        found = await chat.send_message("hi")
    assert found.text == "It rains."
    assert len(target.requests) == 2
    results = [m.text for m in target.requests[1].messages if m.role == "tool"]
    assert results == ['{"result":"rain in Oslo"}', '{"result":"rain in Rome"}']


async def test_a_chat_that_was_streamed_goes_on() -> None:
    config = types.GenerateContentConfig(
        thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_budget=100)
    )
    async with client(thinks) as (api, target):
        chat = api.chats.create(model="a/m:1", config=config)
        parts = []
        async for chunk in await chat.send_message_stream("hi"):
            assert chunk.candidates
            assert chunk.candidates[0].content is not None
            parts += chunk.candidates[0].content.parts or []
        await chat.send_message("and?")
    assert "".join(part.text or "" for part in parts if part.thought) == "hm"
    assert "".join(part.text or "" for part in parts if not part.thought) == "Yes."
    # What another provider signed comes back as it was, next to what it signed.
    _, turn, _ = target.requests[1].messages
    assert turn.content == (ThinkingPart("hm", "c2ln"), TextPart("Yes."))
    assert target.requests[0].reasoning is not None
    assert (target.requests[0].reasoning.budget, target.requests[0].reasoning.shown) == (100, True)


async def test_a_form_for_the_answer() -> None:
    script = list(deltas_of('{"a": 1}'))
    config = types.GenerateContentConfig(
        response_mime_type="application/json",
        response_schema={"type": "OBJECT", "properties": {"a": {"type": "INTEGER"}}},
    )
    async with client(script) as (api, target):
        found = await api.models.generate_content(model="a/m:1", contents="hi", config=config)
    assert found.parsed == {"a": 1}
    wanted = target.requests[0].response_format
    assert wanted is not None
    assert json.loads(bytes(wanted.schema or b""))["properties"] == {"a": {"type": "integer"}}


async def test_pictures_in() -> None:
    picture = bytes(range(250, 256))
    contents = [types.Part.from_bytes(data=picture, mime_type="image/png"), "What is it?"]
    async with client() as (api, target):
        await api.models.generate_content(model="a/m:1", contents=contents)
    encoded = base64.b64encode(picture).decode()
    assert target.requests[0].messages[0].content == (
        ImagePart(ImageURL(f"data:image/png;base64,{encoded}")),
        TextPart("What is it?"),
    )


async def test_models_tokens_and_vectors() -> None:
    async with client() as (api, _):
        listed = [model.name async for model in await api.models.list()]
        one = await api.models.get(model="a/m:1")
        counted = await api.models.count_tokens(model="a/m:1", contents="hello")
        vectors = await api.models.embed_content(
            model="e", contents=["a", "b"], config={"task_type": "CLUSTERING"}
        )
        with pytest.raises(errors.ClientError, match="NOT_FOUND"):
            await api.models.get(model="nobody")
    assert listed == ["models/a/m:1", "models/e"]
    assert one.name == "models/a/m:1"
    assert (counted.total_tokens or 0) > 0
    assert len(vectors.embeddings or []) == 2
    assert (vectors.embeddings or [])[0].values


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("failure", "kind", "status"),
    [
        (RateLimited("slow down", retry_after=3), errors.ClientError, "RESOURCE_EXHAUSTED"),
        (ContextTooLong("too long"), errors.ClientError, "INVALID_ARGUMENT"),
        (UnknownModel("who?"), errors.ClientError, "NOT_FOUND"),
        (RunnerCrashed("gone"), errors.ServerError, "UNAVAILABLE"),
    ],
)
async def test_failures_have_the_clients_own_classes(
    failure: RunnerError, kind: type[errors.APIError], status: str
) -> None:
    async with client([failure]) as (api, _):
        with pytest.raises(kind) as caught:
            await api.models.generate_content(model="a/m:1", contents="hi")
        with pytest.raises(kind) as streamed:
            await streamed_texts(api)
    for one in (caught, streamed):
        assert (one.value.code, one.value.status) == (failure.status, status)


async def test_a_wrong_key_and_a_wrong_body() -> None:
    async with client(key="k" * 40) as (api, _):
        with pytest.raises(errors.ClientError, match="API key") as caught:
            await api.models.generate_content(model="a/m:1", contents="hi")
        assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")
    async with client() as (api, _):
        with pytest.raises(errors.ClientError, match="temperature"):
            await api.models.generate_content(
                model="a/m:1", contents="hi", config={"temperature": 9}
            )


async def streamed_texts(api: AsyncClient, into: list[str | None] | None = None) -> None:
    stream = await api.models.generate_content_stream(model="a/m:1", contents="hi")
    async for chunk in stream:
        if into is not None:
            into.append(chunk.text)


async def test_a_stream_that_breaks_says_so() -> None:
    broken = [Delta(role="assistant", text="Good "), StreamBroken("the upstream was cut")]
    found: list[str | None] = []
    async with client(broken) as (api, _):
        with pytest.raises(errors.ServerError, match="cut"):
            await streamed_texts(api, found)
    assert found == ["Good "]


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


async def test_a_client_that_leaves_frees_its_place() -> None:
    gate = Gate()
    target = FakeTarget("a/m:1", [Delta(role="assistant", text="a"), gate])
    watched = Watched(target)
    async with serve(FakeGateway({"a/m:1": watched}), Server(port=0, drain=0)) as url:
        made = Client(api_key=KEY, http_options=types.HttpOptions(base_url=url))
        async with made.aio as api:
            asking = asyncio.create_task(streamed_texts(api))
            await gate.reached.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            async with asyncio.timeout(5):  # it takes a few turns of the loop; never the gate
                await watched.left.wait()
    assert (target.running, target.cancelled) == (0, 1)


# ---------------------------------------------------------------- what the package does not do

BODY = b'{"contents":[{"parts":[{"text":"hi"}]}]}'


@asynccontextmanager
async def server(script: Any = talks) -> AsyncIterator[tuple[str, HttpClient, FakeTarget]]:
    target = FakeTarget("m", script)
    async with (
        serve(FakeGateway({"m": target}, {"e": FakeEmbedder("e")}), Server(port=0, drain=0)) as url,
        HttpClient() as http,
    ):
        yield url, http, target


async def ask(
    http: HttpClient, url: str, body: bytes = BODY, key: str | None = KEY, method: str = "POST"
) -> tuple[int, bytes, str]:
    headers = [("content-type", "application/json")]
    if key is not None:
        headers.append(("x-goog-api-key", key))
    async with http.stream(method, url, headers=headers, body=body) as response:
        return response.status, await response.read(1 << 20), response.header("content-type") or ""


async def test_the_key_may_stand_in_the_query_and_is_told_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with server() as (url, http, target):
        for prefix in ("/v1beta", "/v1"):
            path = f"{url}{prefix}/models/m:generateContent"
            assert (await ask(http, f"{path}?alt=json&key={KEY}", key=None))[0] == 200
            status, told, _ = await ask(http, f"{path}?key=wrong-{KEY}", key=None)
            assert (status, json.loads(told)["error"]["status"]) == (401, "UNAUTHENTICATED")
            assert KEY.encode() not in told
        # Other formats' clients have no key in the query.
        status, _, _ = await ask(http, f"{url}/v1/chat/completions?key={KEY}", key=None)
        assert status == 401
    assert KEY not in caplog.text
    assert KEY not in repr(target.calls) + repr(target.requests)


async def test_a_stream_without_sse_is_one_list() -> None:
    async with server() as (url, http, _):
        status, told, kind = await ask(http, f"{url}/v1beta/models/m:streamGenerateContent")
    assert (status, kind) == (200, "application/json")
    found = json.loads(told)
    texts = [chunk["candidates"][0]["content"]["parts"][0]["text"] for chunk in found]
    assert "".join(texts) == "Good morning. 日本"


async def test_a_list_that_breaks_ends_with_the_error() -> None:
    broken = [Delta(role="assistant", text="Good "), StreamBroken("cut")]
    async with server(broken) as (url, http, _):
        _, told, _ = await ask(http, f"{url}/v1beta/models/m:streamGenerateContent")
    first, last = json.loads(told)
    assert first["candidates"][0]["content"]["parts"] == [{"text": "Good "}]
    assert (last["error"]["code"], last["error"]["message"]) == (502, "cut")


async def test_a_list_that_a_stopping_server_ends_is_json() -> None:
    gate = Gate()
    target = FakeTarget("m", [Delta(role="assistant", text="a"), gate])
    async with HttpClient() as http:
        async with serve(FakeGateway({"m": target}), Server(port=0, drain=0)) as url:
            path = f"{url}/v1beta/models/m:streamGenerateContent"
            asking = asyncio.create_task(ask(http, path))
            await gate.reached.wait()
        _, told, _ = await asking
    assert json.loads(told)[-1]["error"]["status"] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/v1beta/models/m:generateContent", "GET", 405),
        ("/v1beta/models/m:predict", "POST", 405),
        ("/v1beta/chat/completions", "POST", 404),
        ("/v1beta/models/:generateContent", "POST", 400),
        ("/v1beta/models/nobody:generateContent", "POST", 404),
    ],
)
async def test_paths_that_lead_nowhere(path: str, method: str, status: int) -> None:
    async with server() as (url, http, _):
        body = BODY if method == "POST" else b""
        found, told, _ = await ask(http, url + path, body, method=method)
    assert (found, json.loads(told)["error"]["code"]) == (status, status)


async def test_one_vector() -> None:
    body = b'{"content":{"parts":[{"text":"a"}]},"title":"t"}'
    async with server() as (url, http, _):
        status, told, _ = await ask(http, f"{url}/v1beta/models/e:embedContent", body)
        assert status == 200
        assert json.loads(told)["embedding"]["values"]
        one, _, _ = await ask(http, f"{url}/v1/models", b"", method="GET")
        assert one == 200
