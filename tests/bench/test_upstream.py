"""The mock upstream speaks OpenAI's wire: the `openai` package and raw sockets are content."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import openai
import pytest
from bench import upstream, wire
from bench.load import Load


@asynccontextmanager
async def mock() -> AsyncIterator[tuple[int, upstream.Stats]]:
    server, port, stats = await upstream.listen()
    try:
        yield port, stats
    finally:
        server.close()


@asynccontextmanager
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        mock() as (port, _),
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0
        ) as made,
    ):
        yield made


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # the mock counts and tells nobody
        await asyncio.sleep(0)


async def test_openai_gets_the_plain_answer() -> None:
    async with client() as ask:
        answer = await ask.chat.completions.create(
            model="gpt", messages=[{"role": "user", "content": "Hi"}]
        )
    assert answer.choices[0].message.content == wire.ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 201
    assert answer.model == "gpt"


@pytest.mark.parametrize("usage", [True, False])
async def test_openai_gets_the_stream(usage: bool) -> None:
    script = wire.Script(7, 0.002)
    async with client() as ask:
        stream = await ask.chat.completions.create(
            model=script.model,
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            stream_options={"include_usage": usage},
        )
        chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == script.text
    assert [c.finish_reason for c in choices].count("stop") == 1
    assert choices[-1].finish_reason == "stop"
    counted = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert counted == ([7] if usage else [])
    assert len(chunks) == 7 + 2 + usage


async def test_models_are_listed() -> None:
    async with client() as ask:
        found = [model.id async for model in ask.models.list()]
    assert found == ["mock"]


async def test_an_unknown_route_is_404() -> None:
    async with client() as ask:
        with pytest.raises(openai.NotFoundError, match="no such route"):
            await ask.embeddings.create(model="gpt", input="Hi")


async def test_one_connection_carries_requests_in_order() -> None:
    plain = Load(1, wire.request_body("gpt").decode()).request(0)
    script = wire.Script(2, 0.01)
    streamed = Load(1, wire.request_body(script.model, stream=True).decode()).request(0)
    async with mock() as (port, stats):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(streamed + plain)  # the second has to wait for the first
        first = await reader.readuntil(b"\r\n0\r\n\r\n")
        second = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    assert b"text/event-stream" in first
    assert b"[DONE]" in first
    assert second.startswith(b"HTTP/1.1 200")
    assert b"application/json" in second
    assert stats.requests == 2


@pytest.mark.parametrize("think", [0.0, 30.0])
async def test_a_reader_who_leaves_is_counted(think: float) -> None:
    script = wire.Script(1000, 1.0, think=think)
    request = Load(1, wire.request_body(script.model, stream=True).decode()).request(0)
    async with mock() as (port, stats):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        if not think:
            await reader.readuntil(b"data: ")
        await until(lambda: stats.open_streams == 1)
        writer.close()
        await until(lambda: stats.left_early == 1)
    assert stats.open_streams == 0
    assert stats.left_early == 1


async def test_what_is_not_http_is_hung_up_on() -> None:
    async with mock() as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "script", [wire.Script(), wire.Script(200, 0.005), wire.Script(3, 0.04, think=2.5)]
)
def test_a_model_name_says_the_script(script: wire.Script) -> None:
    assert wire.script_of(script.model) == script
    assert wire.script_of("gpt-4o") == wire.Script()


@pytest.mark.parametrize("size", [0, 700, 4096, 100_000])
def test_a_body_has_the_size_that_was_asked_for(size: int) -> None:
    body = wire.request_body("gpt", size=size)
    json.loads(body)
    smallest = len(wire.request_body("gpt"))
    assert len(body) == max(size, smallest)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("usage", [True, False])
def test_what_a_body_asks_for_is_found(stream: bool, usage: bool) -> None:
    found = wire.asked(wire.request_body("stream-3-0", stream=stream, usage=usage, size=2000))
    assert found == wire.Asked("stream-3-0", stream, stream and usage)


def _stream() -> bytes:
    return b"".join(wire.stream_events("stream-3-0", True))


def test_a_whole_stream_has_no_fault() -> None:
    text = wire.Script(3).text
    assert wire.fault_of_stream(_stream(), text, usage=True) is None
    assert wire.tokens(_stream()) == (25, 3)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b"data: [DONE]\n\n", b"", "without [DONE]"),
        (b'"finish_reason":"stop"', b'"finish_reason":null', "finish reason"),
        (b'"usage":{', b'"used":{', "without usage"),
        (b"000001 ", b"000002 ", "wrong text"),
        (b'"choices":[', b'"choices":[,', "no chunk"),
    ],
)
def test_a_damaged_stream_has_a_fault(old: bytes, new: bytes, fault: str) -> None:
    damaged = _stream().replace(old, new)
    assert damaged != _stream()
    found = wire.fault_of_stream(damaged, wire.Script(3).text, usage=True)
    assert found is not None
    assert fault in found


def test_a_damaged_body_has_a_fault() -> None:
    body = wire.answer_body("gpt")
    assert wire.fault_of_body(body, wire.ANSWER) is None
    assert wire.fault_of_body(body[:-1], wire.ANSWER) == "body is cut off"
    assert wire.fault_of_body(b"{}", wire.ANSWER) == "body with wrong text"
