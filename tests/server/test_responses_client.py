"""The `openai` package's Responses API against a real server: turns, streams, coming back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from llm_runner_router import errors
from llm_runner_router.config import Server
from llm_runner_router.server import serve
from llm_runner_router.surfaces import responses_routes
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeTarget, deltas_of
from llm_runner_router.types import (
    Call,
    Delta,
    Message,
    RedactedPart,
    Request,
    ThinkingPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


def talks(request: Request, call: Call) -> list[Delta]:
    return list(deltas_of("Good morning.", usage=Usage(7, 3, cached_tokens=2)))


def calls(request: Request, call: Call) -> list[Delta]:
    assert request.tools[0].name == "weather"
    return [
        Delta(role="assistant", reasoning="They want "),
        Delta(reasoning="weather."),
        Delta(signature="sig"),
        Delta(redacted="secret"),
        Delta(text="Let me see."),
        Delta(tool_calls=(ToolCallDelta(0, "c1", "weather", '{"city":'),)),
        Delta(tool_calls=(ToolCallDelta(1, "c2", "weather"),)),
        Delta(tool_calls=(ToolCallDelta(0, arguments='"Oslo"}'),)),
        Delta(finish="tool_calls", usage=Usage(9, 9, reasoning_tokens=4)),
    ]


@asynccontextmanager
async def client(
    script: Any = talks, kept: Path | None = None
) -> AsyncIterator[tuple[AsyncOpenAI, FakeTarget]]:
    target = FakeTarget("m", script)
    served = FakeGateway({"m": target}, responses=kept and kept / "responses.sqlite")
    try:
        async with (
            serve(served, Server(port=0, drain=0)) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as api,
        ):
            yield api, target
    finally:
        await served.responses.aclose()


async def test_a_response() -> None:
    async with client() as (api, target):
        answer = await api.responses.create(
            model="m", instructions="Be kind.", input="hello", max_output_tokens=9, temperature=0.5
        )
    assert answer.output_text == "Good morning."
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 3)
    assert answer.usage.input_tokens_details.cached_tokens == 2
    assert (answer.instructions, answer.temperature) == ("Be kind.", 0.5)
    asked = target.requests[0]
    assert asked.messages == (Message("system", "Be kind."), Message("user", "hello"))
    assert asked.sampling.max_tokens == 9


async def test_a_stream_says_the_same_in_pieces() -> None:
    async with client(calls) as (api, _):
        async with api.responses.stream(model="m", input="hello", tools=[WEATHER]) as events:
            kinds = [event.type async for event in events]
            final = await events.get_final_response()
        whole = await api.responses.create(model="m", input="hello", tools=[WEATHER])
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert "response.reasoning_text.delta" in kinds
    assert kinds.count("response.function_call_arguments.done") == 2

    def shown(response: Any) -> list[Any]:
        items = json.loads(response.model_dump_json())["output"]
        return [{k: v for k, v in one.items() if v and k not in ("id", "parsed")} for one in items]

    told = shown(final)
    assert [one["type"] for one in told] == [
        "reasoning",
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert told[0]["content"][0]["text"] == "They want weather."
    assert [one["arguments"] for one in told[3:]] == ['{"city":"Oslo"}', "{}"]
    # A whole answer does not know in which order it was thought: sealed thoughts come first.
    assert sorted(map(str, shown(whole))) == sorted(map(str, told)) or len(shown(whole)) == 5


async def test_the_schema_helper_parses() -> None:
    class Person(BaseModel):
        name: str

    def answers(request: Request, call: Call) -> list[Delta]:
        assert request.response_format is not None
        assert request.response_format.type == "json_schema"
        return list(deltas_of('{"name": "Ada"}', usage=Usage(1, 1)))

    async with client(answers) as (api, _):
        answer = await api.responses.parse(model="m", input="who?", text_format=Person)
    assert answer.output_parsed == Person(name="Ada")


async def test_one_turn_after_the_other(tmp_path: Path) -> None:
    async with client(calls, tmp_path) as (api, target):
        first = await api.responses.create(model="m", input="hello", tools=[WEATHER])
        result: Any = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
        second = await api.responses.create(
            model="m", input=[result], previous_response_id=first.id, tools=[WEATHER]
        )
        items = await api.responses.input_items.list(second.id, order="asc", limit=3)
        more = [item async for item in items]
        again = await api.responses.retrieve(second.id)
        await api.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError, match="there is no response"):
            await api.responses.retrieve(second.id)
    messages = target.requests[1].messages
    assert [m.role for m in messages] == ["user", "assistant", "tool"]
    said = messages[1]
    assert said.tool_calls == (
        ToolCall("c1", "weather", '{"city":"Oslo"}'),
        ToolCall("c2", "weather", "{}"),
    )
    assert isinstance(said.content, tuple)
    assert ThinkingPart("They want weather.", "sig") in said.content
    assert RedactedPart("secret") in said.content
    assert messages[2] == Message("tool", "rain", tool_call_id="c1")
    assert len(more) == 7
    assert more[0].type == "message"
    assert again.model_dump() == second.model_dump()
    assert again.previous_response_id == first.id


async def test_nothing_is_kept_unasked(tmp_path: Path) -> None:
    async with client(kept=tmp_path) as (api, _):
        answer = await api.responses.create(model="m", input="hello", store=False)
        with pytest.raises(openai.NotFoundError):
            await api.responses.retrieve(answer.id)
        with pytest.raises(openai.NotFoundError) as caught:
            await api.responses.create(model="m", input="and?", previous_response_id=answer.id)
    assert caught.value.code == "previous_response_not_found"


async def test_an_answer_made_in_the_background(tmp_path: Path) -> None:
    go = asyncio.Event()
    slowly = [
        Delta(role="assistant", text="Good "),
        go,
        Delta(text="evening."),
        Delta(finish="stop", usage=Usage(1, 2)),
    ]

    async with client(slowly, tmp_path) as (api, _):
        started = await api.responses.create(model="m", input="hello", background=True)
        assert started.status == "queued"
        going = await api.responses.retrieve(started.id)
        assert going.status == "in_progress"
        go.set()
        for _ in range(500):
            done = await api.responses.retrieve(started.id)
            if done.status != "in_progress":
                break
        assert (done.status, done.output_text) == ("completed", "Good evening.")

        go.clear()
        other = await api.responses.create(model="m", input="hello", background=True)
        assert (await api.responses.cancel(other.id)).status == "cancelled"
        assert (await api.responses.retrieve(other.id)).status == "cancelled"
        go.set()
        plain = await api.responses.create(model="m", input="x")
        with pytest.raises(openai.BadRequestError, match="background"):
            await api.responses.cancel(plain.id)


async def test_events_in_the_background_can_be_read_twice(tmp_path: Path) -> None:
    async with client(kept=tmp_path) as (api, _):
        first = await api.responses.create(model="m", input="hello", background=True, stream=True)
        seen = [event async for event in first]
        id: str = seen[-1].response.id  # type: ignore[union-attr]  # the last one has it
        again = await api.responses.retrieve(id, stream=True, starting_after=2)
        rest = [event async for event in again]
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert [event.type for event in rest] == [event.type for event in seen[3:]]


async def test_events_that_take_too_much_are_forgotten_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses_routes, "MAX_REPLAYS", 6_000)
    ids = []
    async with client(kept=tmp_path) as (api, _):
        for _ in range(4):
            stream = await api.responses.create(
                model="m", input="hello", background=True, stream=True
            )
            last = [event async for event in stream][-1]
            ids.append(last.response.id)  # type: ignore[union-attr]  # the last one has it
        again = await api.responses.retrieve(ids[-1], stream=True)
        assert [event async for event in again][-1].type == "response.completed"
        with pytest.raises(openai.BadRequestError, match="events are not kept"):
            await api.responses.retrieve(ids[0], stream=True)
        assert (await api.responses.retrieve(ids[0])).status == "completed"


async def test_a_server_that_stops_tells_what_became_of_it(tmp_path: Path) -> None:
    never = [Delta(role="assistant", text="Good "), asyncio.Event()]
    async with client(never, tmp_path) as (api, _):
        started = await api.responses.create(model="m", input="hello", background=True)
    async with client(never, tmp_path) as (api, _):
        found = await api.responses.retrieve(started.id)
    assert (found.status, found.error and found.error.code) == ("failed", "server_error")
    assert found.error is not None
    assert "stopped" in found.error.message


async def test_a_stream_that_breaks_says_so() -> None:
    def breaks(request: Request, call: Call) -> list[Any]:
        return [Delta(role="assistant", text="Good "), errors.StreamBroken("gone")]

    async with client(breaks) as (api, _):
        stream = await api.responses.create(model="m", input="hello", stream=True)
        with pytest.raises(openai.APIError) as caught:
            _ = [event async for event in stream]
    assert "gone" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": 3}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "temperature": 3}, "temperature"),
        ({"input": "x", "tool_choice": "any"}, "tool_choice"),
        ({"input": "x", "background": True, "store": False}, "background"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
    ],
)
async def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    async with client() as (api, _):
        with pytest.raises(openai.BadRequestError) as caught:
            await api.post("/responses", cast_to=object, body={"model": "m", **body})
    assert caught.value.param == param


async def test_tokens_are_counted_without_an_answer() -> None:
    async with client() as (api, target):
        found = await api.responses.input_tokens.count(model="m", input="hello")
    assert found.input_tokens == len("user: hello\n")
    assert not target.requests
