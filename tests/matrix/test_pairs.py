"""Every way in to every way out: what is asked arrives, what is answered comes back."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from llm_runner_router import errors
from llm_runner_router.types import (
    Delta,
    ImagePart,
    ImageURL,
    Message,
    Request,
    ResponseFormat,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)

from .pairs import DIALECTS, MODEL, pair

PAIRS = [(a, b) for a in DIALECTS for b in DIALECTS]
HI = (Message("user", "hi"),)
ADD = Tool("add", "Adds.", Raw(b'{"type":"object","properties":{"a":{"type":"integer"}}}'))
SUB = Tool("sub", "Subtracts.", Raw(b'{"type":"object","properties":{}}'))
PICTURE = "data:image/png;base64,iVBORw0KGgo="
USAGE = Usage(20, 10, cached_tokens=5)
TALKS = (
    Delta(role="assistant", text="Grüß "),
    Delta(text="Gott, 世界."),
    Delta(finish="stop", usage=USAGE),
)
CALLS = (
    Delta(role="assistant", text="Let me see."),
    Delta(tool_calls=(ToolCallDelta(0, "c1", "add", '{"a":'),)),
    Delta(tool_calls=(ToolCallDelta(0, arguments="1}"),)),
    Delta(tool_calls=(ToolCallDelta(1, "c2", "sub", "{}"),)),
    Delta(finish="tool_calls", usage=USAGE),
)

every_pair = pytest.mark.parametrize(("way_in", "way_out"), PAIRS)
both = pytest.mark.parametrize("stream", [False, True])


def ask(**fields: Any) -> Request:
    return Request(MODEL, **{"messages": HI, "include_usage": True, **fields})


@every_pair
@both
async def test_text_and_its_tokens(way_in: str, way_out: str, stream: bool) -> None:
    asked = ask(
        messages=(
            Message("system", "Be kind."),
            Message("user", "hi"),
            Message("assistant", "Hello."),
            Message("user", "Again, ä 世界."),
        ),
        sampling=Sampling(temperature=0.5, top_p=0.9, max_tokens=64),
        stream=stream,
    )
    async with pair(way_in, way_out, TALKS) as through:
        seen = await through.ask(asked)
    assert seen.asked.messages == asked.messages
    draw = seen.asked.sampling
    assert (draw.temperature, draw.top_p, draw.max_tokens) == (0.5, 0.9, 64)
    choice = seen.answer.choices[0]
    assert (choice.text, choice.finish) == ("Grüß Gott, 世界.", "stop")
    assert seen.answer.usage == USAGE
    assert seen.asked.stream == stream
    assert not seen.marks


@every_pair
@both
async def test_calls_and_their_results(way_in: str, way_out: str, stream: bool) -> None:
    asked = ask(
        messages=(
            *HI,
            Message(
                "assistant",
                "One moment.",
                tool_calls=(ToolCall("c8", "add", '{"a":2}'), ToolCall("c9", "sub", "{}")),
            ),
            Message("tool", "two", tool_call_id="c8"),
            Message("tool", "none", tool_call_id="c9"),
            Message("user", "go on"),
        ),
        tools=(ADD, SUB),
        tool_choice="required",
        stream=stream,
    )
    async with pair(way_in, way_out, CALLS) as through:
        seen = await through.ask(asked)
    tools = [
        (t.name, t.description, json.loads(bytes(t.parameters or b""))) for t in seen.asked.tools
    ]
    assert tools == [
        (t.name, t.description, json.loads(bytes(t.parameters or b""))) for t in (ADD, SUB)
    ]
    assert seen.asked.tool_choice == "required"
    said = [m for m in seen.asked.messages if m.role == "assistant"]
    assert [(c.name, json.loads(c.arguments)) for c in said[0].tool_calls] == [
        ("add", {"a": 2}),
        ("sub", {}),
    ]
    results = [m for m in seen.asked.messages if m.role == "tool"]
    ids = [call.id for call in said[0].tool_calls]
    assert [(m.tool_call_id, m.text) for m in results] == list(
        zip(ids, ("two", "none"), strict=True)
    )
    choice = seen.answer.choices[0]
    assert (choice.text, choice.finish) == ("Let me see.", "tool_calls")
    found = [(c.id, c.name, json.loads(c.arguments)) for c in choice.tool_calls]
    assert found == [("c1", "add", {"a": 1}), ("c2", "sub", {})]


@every_pair
async def test_one_function_or_none(way_in: str, way_out: str) -> None:
    async with pair(way_in, way_out, TALKS) as through:
        one = await through.ask(ask(tools=(ADD, SUB), tool_choice="function:sub"))
        none = await through.ask(ask(tools=(ADD,), tool_choice="none"))
    if "Cohere" in (way_in, way_out):  # it can say no name, so it is shown no other function
        assert [tool.name for tool in one.asked.tools] == ["sub"]
        assert one.asked.tool_choice == "required"
    else:
        assert one.asked.tool_choice == "function:sub"
    if "Bedrock" in (way_in, way_out):  # it has no word for that: the tools are left out
        assert (none.asked.tools, none.asked.tool_choice) == ((), None)
    else:
        assert none.asked.tool_choice == "none"


@every_pair
async def test_pictures(way_in: str, way_out: str) -> None:
    content = (TextPart("What is it?"), ImagePart(ImageURL(PICTURE)))
    async with pair(way_in, way_out, TALKS) as through:
        seen = await through.ask(ask(messages=(Message("user", content),)))
    (message,) = seen.asked.messages
    assert isinstance(message.content, tuple)
    text, picture = message.content
    assert text == TextPart("What is it?")
    assert isinstance(picture, ImagePart)
    assert picture.image_url.url == PICTURE


@every_pair
async def test_a_schema(way_in: str, way_out: str) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wanted = ResponseFormat("json_schema", Raw(msgspec.json.encode(schema)), "person", True)
    script = (Delta(role="assistant", text='{"name":"Ada","age":36}'), TALKS[-1])
    async with pair(way_in, way_out, script) as through:
        seen = await through.ask(ask(response_format=wanted))
    found = seen.asked.response_format
    assert found is not None
    assert found.type == "json_schema"
    assert json.loads(bytes(found.schema or b"")) == schema
    assert json.loads(seen.answer.text) == {"name": "Ada", "age": 36}


@every_pair
@pytest.mark.parametrize(("finish", "told"), [("length", "length"), ("content_filter", None)])
@both
async def test_why_it_ended(
    way_in: str, way_out: str, finish: Any, told: str | None, stream: bool
) -> None:
    script = (Delta(role="assistant", text="Well"), Delta(finish=finish, usage=USAGE))
    async with pair(way_in, way_out, script) as through:
        seen = await through.ask(ask(stream=stream))
    assert seen.answer.choices[0].finish == (told or finish)
    assert seen.answer.text == "Well"


@every_pair
@both
@pytest.mark.parametrize(
    "failure",
    [
        errors.RateLimited("slow down", retry_after=7),
        errors.ContextTooLong("the prompt is too long"),
        errors.Unavailable("come back", retry_after=3),
        errors.UpstreamError("broken"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_failures_are_the_same_failures(
    way_in: str, way_out: str, stream: bool, failure: errors.RunnerError
) -> None:
    async with pair(way_in, way_out, [failure]) as through:
        with pytest.raises(errors.RunnerError) as caught:
            await through.ask(ask(stream=stream))
    found = caught.value
    # That a server is overloaded is a failure of an upstream for who asked it.
    busy = isinstance(failure, errors.Unavailable)
    assert isinstance(found, errors.UpstreamError if busy else type(failure))
    assert failure.message in found.message
    if isinstance(failure, errors.RateLimited):
        assert found.retry_after == failure.retry_after


@every_pair
async def test_a_stream_that_breaks_is_no_answer(way_in: str, way_out: str) -> None:
    script = [TALKS[0], errors.StreamBroken("gone")]
    async with pair(way_in, way_out, script) as through:
        with pytest.raises(errors.RunnerError, match="gone"):
            await through.ask(ask(stream=True))
